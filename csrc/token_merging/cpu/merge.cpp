// The tokens of a merged sequence: single ones are copied, windows and absorbing tokens are sums or means.
#include <algorithm>
#include <cstring>

#include "../../common/parallel.h"
#include "operators.h"
#include "window_list.h"

namespace tokendetr::merging {
namespace {

// Of the tokens.
struct Shape {
  int64_t images, tokens, channels;
};

int64_t rows_worth_a_thread(int64_t channels) {
  constexpr int64_t kNumbers = int64_t{1} << 17;
  return kNumbers / std::max<int64_t>(channels, 1) + 1;
}

void add(float* sum, const float* row, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) sum[c] += row[c];
}

void divide(float* sum, int64_t count, int64_t channels) {
  const auto divisor = static_cast<float>(count);
  for (int64_t c = 0; c < channels; ++c) sum[c] /= divisor;
}

void copy_tokens(const float* from, const int64_t* index, int64_t length, const Shape& x, float* to) {
  parallel_for(0, x.images * length, rows_worth_a_thread(x.channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = row / length * x.tokens + index[row];
      std::copy_n(from + token * x.channels, x.channels, to + row * x.channels);
    }
  });
}

void merge_windows(const float* from, const Windows& windows, const int64_t* slot, const Shape& x, bool mean,
                   float* to) {
  const int64_t* member = windows.member;
  for (size_t z = 0; z < windows.cells.size(); ++z) {
    const int64_t cells = windows.cells[z], number = windows.number[z];
    parallel_for(0, number, rows_worth_a_thread(cells * x.channels), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t* own = member + r * cells;
        float* sum = to + slot[r] * x.channels;
        std::copy_n(from + own[0] * x.channels, x.channels, sum);
        for (int64_t p = 1; p < cells; ++p) add(sum, from + own[p] * x.channels, x.channels);
        if (mean) divide(sum, cells, x.channels);
      }
    });
    member += number * cells;
    slot += number;
  }
}

// Tokens of the coarsest level that absorb others.
struct Absorption {
  const int64_t* neighbor;  // [B, U, T], tokens of the level
  const bool* absorbs;      // [B, U, T]
  const int64_t* token;     // flat over the level
  const int64_t* slot;
  int64_t count, level_tokens, neighbors, start;
};

void absorb_tokens(const float* from, const Absorption& a, const Shape& x, bool mean, float* to) {
  const int64_t all = x.images * a.level_tokens;
  const auto row = [&](int64_t token) {
    return from + (token / a.level_tokens * x.tokens + a.start + token % a.level_tokens) * x.channels;
  };
  std::vector<float*> sums(all, nullptr);
  Numbers members(all, 1);
  for (int64_t i = 0; i < a.count; ++i) {
    sums[a.token[i]] = std::copy_n(row(a.token[i]), x.channels, to + a.slot[i] * x.channels) - x.channels;
  }
  for (int64_t token = 0; token < all; ++token) {
    for (int64_t t = token * a.neighbors; t < (token + 1) * a.neighbors; ++t) {
      const int64_t absorber = token - token % a.level_tokens + a.neighbor[t];
      if (!a.absorbs[t] || sums[absorber] == nullptr) continue;
      add(sums[absorber], row(token), x.channels);
      ++members[absorber];
    }
  }
  for (int64_t token = 0; mean && token < all; ++token) {
    if (sums[token] != nullptr && members[token] > 1) divide(sums[token], members[token], x.channels);
  }
}

Absorption checked_absorption(const Tensor& neighbor, const Tensor& absorbs, const Tensor& absorber,
                              const Tensor& absorber_slot, int64_t start, const Shape& x, int64_t slots) {
  TOKENDETR_CHECK_ARGUMENT(neighbor.dim() == 3, "neighbor must have shape [B, U, T], got ", shape_of(neighbor));
  const int64_t level = neighbor.size(1), count = absorber.numel();
  check_tensor("neighbor", neighbor, {x.images, level, neighbor.size(2)}, ScalarType::Long);
  check_tensor("absorbs", absorbs, {x.images, level, neighbor.size(2)}, ScalarType::Bool);
  check_tensor("absorber", absorber, {count}, ScalarType::Long);
  check_tensor("absorber_slot", absorber_slot, {count}, ScalarType::Long);
  check_indices("neighbor", neighbor, level);
  check_indices("absorber", absorber, x.images * level);
  check_indices("absorber_slot", absorber_slot, slots);
  TOKENDETR_CHECK_ARGUMENT(start >= 0 && start <= x.tokens - level, "start must lie in [0, ", x.tokens - level,
                           "], got ", start);
  return {neighbor.const_data_ptr<int64_t>(),
          absorbs.const_data_ptr<bool>(),
          absorber.const_data_ptr<int64_t>(),
          absorber_slot.const_data_ptr<int64_t>(),
          count,
          level,
          neighbor.size(2),
          start};
}

}  // namespace

Tensor merge_tokens(const Tensor& x, const Tensor& index, const Tensor& member, const Numbers& cells,
                    const Numbers& number, const Tensor& window_slot, const OptionalTensor& neighbor,
                    const OptionalTensor& absorbs, const Tensor& absorber, const Tensor& absorber_slot, int64_t start,
                    bool mean) {
  TOKENDETR_CHECK_ARGUMENT(x.dim() == 3, "x must have shape [B, N, C], got ", shape_of(x));
  TOKENDETR_CHECK_ARGUMENT(index.dim() == 2, "index must have shape [B, K], got ", shape_of(index));
  TOKENDETR_CHECK_ARGUMENT(neighbor.has_value() == absorbs.has_value(), "neighbor and absorbs need each other");
  const Shape sizes{x.size(0), x.size(1), x.size(2)};
  const int64_t length = index.size(1), slots = sizes.images * length;
  const Tensor rows = dense(x), indices = dense(index), members = dense(member), window_slots = dense(window_slot);
  check_tensor("x", rows, {sizes.images, sizes.tokens, sizes.channels}, ScalarType::Float);
  check_tensor("index", indices, {sizes.images, length}, ScalarType::Long);
  check_indices("index", indices, sizes.tokens);
  check_windows(members, cells, number, sizes.images * sizes.tokens);
  const Windows windows{members.const_data_ptr<int64_t>(), cells, number};
  check_tensor("window_slot", window_slots, {windows.count()}, ScalarType::Long);
  check_indices("window_slot", window_slots, slots);
  const Tensor result = empty_tensor({sizes.images, length, sizes.channels}, x, ScalarType::Float);
  const float* from = rows.const_data_ptr<float>();
  float* to = result.mutable_data_ptr<float>();
  copy_tokens(from, indices.const_data_ptr<int64_t>(), length, sizes, to);
  merge_windows(from, windows, window_slots.const_data_ptr<int64_t>(), sizes, mean, to);
  if (neighbor.has_value()) {
    const Tensor near = dense(*neighbor), which = dense(*absorbs), tokens = dense(absorber);
    const Tensor places = dense(absorber_slot);
    absorb_tokens(from, checked_absorption(near, which, tokens, places, start, sizes, slots), sizes, mean, to);
  }
  return result;
}

}  // namespace tokendetr::merging
