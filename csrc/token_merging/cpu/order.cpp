// The order of a merged sequence: which tokens stay, and the places of those that stand for others.
#include <algorithm>
#include <numeric>

#include "steps.h"
#include "window_list.h"

namespace tokendetr::merging {
namespace {

struct Sequence {
  int64_t images, tokens, length;
};

// 1 for the tokens that are in the merged sequence.
std::vector<char> kept_tokens(const Tensor& valid, const Windows& windows, const OptionalTensor& important) {
  const int64_t images = valid.size(0), tokens = valid.size(1);
  const bool* real = valid.const_data_ptr<bool>();
  std::vector<char> keep(real, real + images * tokens);
  windows.for_each([&keep](const int64_t* own, int64_t count) {
    for (int64_t p = 0; p + 1 < count; ++p) keep[own[p]] = 0;
    keep[own[count - 1]] = 1;
  });
  if (important.has_value()) {
    const int64_t coarsest = important->size(1);
    const bool* chosen = important->const_data_ptr<bool>();
    for (int64_t b = 0; b < images; ++b) {
      std::copy(chosen + b * coarsest, chosen + (b + 1) * coarsest, keep.begin() + (b + 1) * tokens - coarsest);
    }
  }
  return keep;
}

// Each token's place in its image: those that stay in order of position, then the others. `kept` gets the first
// `length` tokens of this order.
Numbers number_places(const std::vector<char>& keep, const Sequence& sequence, int64_t* kept) {
  Numbers places(keep.size());
  for (int64_t b = 0; b < sequence.images; ++b) {
    const int64_t start = b * sequence.tokens;
    const char* own = keep.data() + start;
    int64_t next = 0, behind = std::accumulate(own, own + sequence.tokens, int64_t{0});
    for (int64_t n = 0; n < sequence.tokens; ++n) {
      const int64_t place = own[n] ? next++ : behind++;
      places[start + n] = place;
      if (place < sequence.length) kept[b * sequence.length + place] = n;
    }
  }
  return places;
}

struct Absorbers {
  Tensor token, slot;
};

// The flat tokens (counted over the coarsest level) and slots of the first tokens of each row of `absorber`.
Absorbers absorbers_of(const Tensor& absorber, const Numbers& counts, const Numbers& places, const Sequence& sequence,
                       int64_t coarsest) {
  const int64_t all = std::accumulate(counts.begin(), counts.end(), int64_t{0}), most = absorber.size(1);
  const Absorbers found{empty_tensor({all}, absorber, ScalarType::Long),
                        empty_tensor({all}, absorber, ScalarType::Long)};
  const int64_t* index = absorber.const_data_ptr<int64_t>();
  int64_t* token = found.token.mutable_data_ptr<int64_t>();
  int64_t* slot = found.slot.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < sequence.images; ++b) {
    const int64_t* place = places.data() + (b + 1) * sequence.tokens - coarsest;
    for (int64_t i = 0; i < counts[b]; ++i) {
      const int64_t own = index[b * most + i];
      *token++ = b * coarsest + own;
      *slot++ = b * sequence.length + place[own];
    }
  }
  return found;
}

int64_t checked_coarsest(const OptionalTensor& important, const OptionalTensor& absorber, const Numbers& counts,
                         const Sequence& sequence) {
  TOKENDETR_CHECK_ARGUMENT(important.has_value() || !absorber.has_value(), "absorber needs important");
  if (!important.has_value()) return 0;
  const Tensor& chosen = *important;
  const int64_t images = sequence.images, coarsest = chosen.dim() == 2 ? chosen.size(1) : 0;
  check_tensor("important", chosen, {images, coarsest}, ScalarType::Bool);
  TOKENDETR_CHECK_ARGUMENT(coarsest <= sequence.tokens, "important must have at most ", sequence.tokens,
                           " tokens, got ", coarsest);
  if (absorber.has_value()) {
    const int64_t most = absorber->dim() == 2 ? absorber->size(1) : 0;
    check_tensor("absorber", *absorber, {images, most}, ScalarType::Long);
    check_indices("absorber", *absorber, coarsest);
    check_counts("absorber_counts", counts, images, most);
  }
  return coarsest;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> merged_order(const Tensor& valid, const Tensor& member, const Numbers& cells,
                                                        const Numbers& number, const OptionalTensor& important,
                                                        const OptionalTensor& absorber, const Numbers& absorber_counts,
                                                        int64_t length) {
  TOKENDETR_CHECK_ARGUMENT(valid.dim() == 2, "valid must have shape [B, N], got ", shape_of(valid));
  const Sequence sequence{valid.size(0), valid.size(1), length};
  check_tensor("valid", valid, {sequence.images, sequence.tokens}, ScalarType::Bool);
  check_counts("length", {length}, 1, sequence.tokens);
  const Tensor members = dense(member);
  check_windows(members, cells, number, sequence.images * sequence.tokens);
  const OptionalTensor chosen = dense(important), absorbing = dense(absorber);
  const int64_t coarsest = checked_coarsest(chosen, absorbing, absorber_counts, sequence);
  const Windows windows{members.const_data_ptr<int64_t>(), cells, number};
  const Tensor index = empty_tensor({sequence.images, length}, valid, ScalarType::Long);
  const Numbers places =
      number_places(kept_tokens(dense(valid), windows, chosen), sequence, index.mutable_data_ptr<int64_t>());
  const Tensor slot = empty_tensor({windows.count()}, valid, ScalarType::Long);
  int64_t* at = slot.mutable_data_ptr<int64_t>();
  windows.for_each([&](const int64_t* own, int64_t count) {
    const int64_t last = own[count - 1];
    *at++ = last / sequence.tokens * length + places[last];
  });
  if (absorbing.has_value()) {
    const Absorbers found = absorbers_of(*absorbing, absorber_counts, places, sequence, coarsest);
    return {index, slot, found.token, found.slot};
  }
  const auto none = [&valid] { return empty_tensor({0}, valid, ScalarType::Long); };
  return {index, slot, none(), none()};
}

}  // namespace tokendetr::merging
