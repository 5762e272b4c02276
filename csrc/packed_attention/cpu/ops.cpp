// The CPU kernels as operators: allocation and the division of the work among threads.
#include <algorithm>
#include <cstring>
#include <tuple>

#include "../../common/parallel.h"
#include "../../common/results.h"
#include "../../common/scratch.h"
#include "../arguments.h"
#include "../registration.h"
#include "kernels.h"
#include "segments.h"

namespace tokendetr::packed {
namespace {

using Optional = const OptionalTensor&;

void zero_padding(const Write& tensor, const std::vector<int32_t>& padding, int64_t container, const Heads& heads,
                  int64_t width, int64_t element) {
  char* base = static_cast<char*>(tensor.data) + container * tensor.container * element;
  for (const int32_t slot : padding) {
    for (int64_t head = heads.first; head < heads.end; ++head) {
      std::memset(base + (slot * tensor.slot + head * tensor.head) * element, 0, width * element);
    }
  }
}

// Calls work(container, heads, slots by segment) for what items [begin, end) of `containers` times
// `heads` stand for: a container's heads follow each other.
template <class Work>
void for_each_container(const Prepared& call, int64_t begin, int64_t end, const Work& work) {
  const Problem& p = call.problem;
  const int32_t* segment = call.segment.const_data_ptr<int32_t>();
  SlotsBySegment slots;
  while (begin < end) {
    const int64_t container = begin / p.heads, head = begin % p.heads;
    const Heads heads{head, std::min(p.heads, head + end - begin)};
    slots.sort(segment + container * p.slots, p.slots);
    work(container, heads, slots);
    begin += heads.end - heads.first;
  }
}

// Items of work (one head of one container) that are worth a thread.
int64_t least_items(const Problem& p) {
  constexpr double kProducts = 1 << 17;
  const double products = static_cast<double>(p.slots) * static_cast<double>(p.slots) * static_cast<double>(p.width);
  return static_cast<int64_t>(kProducts / std::max(products, 1.0)) + 1;
}

Tensor empty_like_query(const Prepared& call) {
  const Problem& p = call.problem;
  return result_tensor({p.containers, p.slots, p.heads, p.width}, call.query, call.query.scalar_type());
}

Tensor forward(const Prepared& call) {
  const Problem& p = call.problem;
  const Tensor output = empty_like_query(call);
  if (call.empty()) return output;
  const Kernels& set = kernels();
  const Inputs inputs = call.inputs();
  const Write to = write_of(output);
  const auto element = static_cast<int64_t>(output.element_size());
  parallel_for(0, p.containers * p.heads, least_items(p), [&](int64_t begin, int64_t end) {
    const Scratch memory(set.forward_bytes(p, call.storage, p.slots));
    void* at = memory.data();
    for_each_container(call, begin, end, [&](int64_t container, const Heads& heads, const auto& slots) {
      set.forward(p, call.storage, inputs, slots.segments(), container, heads, at, to);
      zero_padding(to, slots.padding(), container, heads, p.width, element);
    });
  });
  return output;
}

// Table gradients are summed per part, a fixed run of containers, and the parts in order: the same bits whatever the
// number of threads.
int64_t containers_per_part(const Prepared& call, bool wants_table) {
  constexpr int64_t kMostParts = 64, kMostNumbers = int64_t{1} << 22;
  if (!wants_table) return 1;
  const int64_t table = call.problem.heads * call.problem.side() * call.problem.side();
  const int64_t parts = std::clamp<int64_t>(kMostNumbers / table, 1, kMostParts);
  return (call.problem.containers + parts - 1) / parts;
}

struct CallGradients {
  Tensor query, key, value;
  OptionalTensor table, key_bias;
};

void backward_items(const Prepared& call, const Gradients& gradients, int64_t element, int64_t per_part, int64_t begin,
                    int64_t end) {
  const Problem& p = call.problem;
  const Kernels& set = kernels();
  const Inputs inputs = call.inputs();
  const Scratch memory(set.backward_bytes(p, call.storage, p.slots));
  void* at = memory.data();
  const int64_t table_bytes =
      p.side() * p.side() * static_cast<int64_t>(call.storage == Storage::kFloat64 ? sizeof(double) : sizeof(float));
  while (begin < end) {
    const int64_t part = begin / p.heads, first = begin % p.heads;
    const Heads heads{first, std::min(p.heads, first + end - begin)};
    const int64_t stop = std::min(p.containers, (part + 1) * per_part);
    Gradients own = gradients;
    if (own.table != nullptr) own.table = static_cast<char*>(own.table) + part * p.heads * table_bytes;
    SlotsBySegment slots;
    for (int64_t container = part * per_part; container < stop; ++container) {
      slots.sort(call.segment.const_data_ptr<int32_t>() + container * p.slots, p.slots);
      set.backward(p, call.storage, inputs, slots.segments(), container, heads, at, own);
      for (const Write& to : {own.query, own.key, own.value}) {
        zero_padding(to, slots.padding(), container, heads, p.width, element);
      }
    }
    begin += heads.end - heads.first;
  }
}

CallGradients backward(const Prepared& call, const Tensor& grad_output, bool wants_table, bool wants_key_bias) {
  const Problem& p = call.problem;
  const ScalarType wide = sum_type(call.query);
  const int64_t per_part = std::max<int64_t>(containers_per_part(call, wants_table), 1);
  const int64_t parts = (p.containers + per_part - 1) / per_part;
  CallGradients result{empty_like_query(call), empty_like_query(call), empty_like_query(call), std::nullopt,
                       std::nullopt};
  if (wants_table) result.table = zeros_tensor({parts, p.heads, p.side(), p.side()}, call.query, wide);
  if (wants_key_bias) result.key_bias = zeros_tensor({p.containers, p.heads, p.slots}, call.query, wide);
  if (call.empty()) return result;
  const Tensor incoming = dense_rows(grad_output, 1);
  const Gradients gradients{read_of(incoming),
                            write_of(result.query),
                            write_of(result.key),
                            write_of(result.value),
                            wants_table ? result.table->mutable_data_ptr() : nullptr,
                            wants_key_bias ? result.key_bias->mutable_data_ptr() : nullptr};
  const auto element = static_cast<int64_t>(call.query.element_size());
  parallel_for(0, parts * p.heads, least_items(p) / per_part + 1,
               [&](int64_t begin, int64_t end) { backward_items(call, gradients, element, per_part, begin, end); });
  return result;
}

Tensor packed_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& segment,
                        double scale, Optional position, Optional bias_table, Optional key_bias) {
  return forward(Prepared({query, key, value, segment, scale, position, bias_table, key_bias}, 1));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> packed_attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& segment,
    double scale, Optional position, Optional bias_table, Optional key_bias, bool wants_table_gradient,
    bool wants_key_bias_gradient) {
  const Arguments arguments{query, key, value, segment, scale, position, bias_table, key_bias};
  const Prepared call(arguments, 1);
  check_backward(arguments, grad_output, wants_table_gradient, wants_key_bias_gradient);
  const CallGradients gradients = backward(call, grad_output, wants_table_gradient, wants_key_bias_gradient);
  const auto none = [&] { return empty_tensor({0}, query, query.scalar_type()); };
  return {gradients.query, gradients.key, gradients.value,
          gradients.table ? summed(*gradients.table, 0, bias_table->scalar_type()) : none(),
          gradients.key_bias ? summed(*gradients.key_bias, 1, key_bias->scalar_type()) : none()};
}

}  // namespace

void add_cpu_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("packed_attention", TORCH_BOX(&packed_attention));
  library.impl("packed_attention_backward", TORCH_BOX(&packed_attention_backward));
}

}  // namespace tokendetr::packed
