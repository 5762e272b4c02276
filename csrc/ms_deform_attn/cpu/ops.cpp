// The CPU kernels as operators: allocation, the division of heads among threads, registration for CPU.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../../common/huge_pages.h"
#include "../arguments.h"
#include "kernels.h"

namespace tokendetr {
namespace {

using at::Tensor;

Storage storage_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case at::kDouble:
      return Storage::kFloat64;
    case at::kBFloat16:
      return Storage::kBFloat16;
    case at::kHalf:
      return Storage::kFloat16;
    default:
      return Storage::kFloat32;
  }
}

Tensor scratch(int64_t bytes) {
  return with_huge_pages(at::empty({std::max<int64_t>(bytes, 1)}, at::TensorOptions().dtype(at::kByte)));
}

// A call's tensors, contiguous and with coordinates in the type of the sums, and the kernels' view of them.
struct Call {
  Problem problem;
  Storage storage;
  Tensor value, locations, weights, reference;
  Inputs inputs;

  Call(const Problem& sizes, const Tensor& values, const Tensor& sample_locations, const Tensor& sample_weights,
       const Tensor& references)
      : problem(sizes), storage(storage_of(values)), value(values.contiguous()) {
    const at::ScalarType type = coordinate_type(values);
    locations = sample_locations.to(type).contiguous();
    weights = sample_weights.to(type).contiguous();
    if (references.defined()) reference = references.to(type).contiguous();
    inputs = {value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(),
              reference.defined() ? reference.const_data_ptr() : nullptr,
              reference.defined() ? static_cast<int>(reference.size(3)) : 0};
  }

  bool empty() const { return problem.batch == 0 || problem.queries == 0; }

  // Copying a head's values pays once a head is sampled about as often as it has tokens.
  bool read_in_place() const {
    const int64_t samples = problem.queries * problem.samples();
    return kernels().reads_in_place(problem, storage) && samples < kSamplesPerToken * problem.tokens;
  }

  static constexpr int64_t kSamplesPerToken = 3;
};

// Where values are read in place, a block of queries visits all heads before the next block starts: neighbouring queries
// sample the same tokens, whose heads share pages.
constexpr int64_t kQueryBlock = 64;

int64_t query_blocks(const Problem& p) { return (p.queries + kQueryBlock - 1) / kQueryBlock; }

Tensor forward(const Call& call) {
  const Problem& p = call.problem;
  Tensor output = with_huge_pages(at::empty({p.batch, p.queries, p.heads * p.width}, call.value.options()));
  if (call.empty()) return output;
  const Kernels& set = kernels();
  void* to = output.mutable_data_ptr();
  if (call.read_in_place()) {
    const int64_t blocks = query_blocks(p);
    at::parallel_for(0, p.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t first = item % blocks * kQueryBlock, last = std::min(first + kQueryBlock, p.queries);
        for (int64_t head = 0; head < p.heads; ++head) {
          set.forward(p, call.storage, call.inputs, item / blocks, head, first, last, nullptr, to);
        }
      }
    });
    return output;
  }
  const int64_t units = p.batch * p.heads, threads = at::get_num_threads();
  const int64_t splits = units % threads == 0 || units >= 4 * threads ? 1 : std::min(threads, p.queries);
  at::parallel_for(0, units * splits, 1, [&](int64_t begin, int64_t end) {
    const Tensor memory = scratch(set.map_bytes(p, call.storage));
    void* map = memory.mutable_data_ptr();
    int64_t copied = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t unit = item / splits, split = item % splits;
      if (unit != copied) {
        set.copy_map(p, call.storage, call.inputs.value, unit / p.heads, unit % p.heads, map);
        copied = unit;
      }
      set.forward(p, call.storage, call.inputs, unit / p.heads, unit % p.heads, p.queries * split / splits,
                  p.queries * (split + 1) / splits, map, to);
    }
  });
  return output;
}

struct CallGradients {
  Tensor value, locations, weights, reference;
};

// The backward of units [begin, end), which one thread owns.
void backward_in_place(const Call& call, const Gradients& gradients, int64_t begin, int64_t end) {
  const Problem& p = call.problem;
  for (int64_t image = begin / p.heads; image * p.heads < end; ++image) {
    const int64_t first_head = std::max<int64_t>(begin - image * p.heads, 0);
    const int64_t last_head = std::min(end - image * p.heads, p.heads);
    for (int64_t first = 0; first < p.queries; first += kQueryBlock) {
      const int64_t last = std::min(first + kQueryBlock, p.queries);
      for (int64_t head = first_head; head < last_head; ++head) {
        kernels().backward(p, call.storage, call.inputs, image, head, first, last, nullptr, nullptr, gradients);
      }
    }
  }
}

void backward_with_maps(const Call& call, const Gradients& gradients, int64_t begin, int64_t end) {
  const Problem& p = call.problem;
  const Kernels& set = kernels();
  const Tensor map = scratch(set.map_bytes(p, call.storage));
  const Tensor gradient_map = scratch(set.gradient_map_bytes(p, call.storage));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / p.heads, head = unit % p.heads;
    set.copy_map(p, call.storage, call.inputs.value, image, head, map.mutable_data_ptr());
    set.backward(p, call.storage, call.inputs, image, head, 0, p.queries, map.mutable_data_ptr(),
                 gradient_map.mutable_data_ptr(), gradients);
  }
}

CallGradients backward(const Call& call, const Tensor& grad_output, bool wants_reference) {
  const Problem& p = call.problem;
  const bool in_place = call.read_in_place() && call.value.element_size() >= 4;
  CallGradients result;
  result.value = with_huge_pages(at::empty_like(call.value));
  result.locations = with_huge_pages(at::empty_like(call.locations));
  result.weights = with_huge_pages(at::empty_like(call.weights));
  if (in_place || call.empty()) result.value.zero_();
  if (wants_reference) {
    result.reference = at::zeros({p.heads, p.batch, p.queries, p.levels, call.reference.size(3)},
                                 call.reference.options());
  }
  if (call.empty()) return result;
  const Tensor incoming = grad_output.contiguous();
  const Gradients gradients{incoming.const_data_ptr(), result.value.mutable_data_ptr(),
                            result.locations.mutable_data_ptr(), result.weights.mutable_data_ptr(),
                            wants_reference ? result.reference.mutable_data_ptr() : nullptr};
  at::parallel_for(0, p.batch * p.heads, 1, [&](int64_t begin, int64_t end) {
    in_place ? backward_in_place(call, gradients, begin, end) : backward_with_maps(call, gradients, begin, end);
  });
  return result;
}

Tensor ms_deform_attn(const Tensor& value, at::IntArrayRef level_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
  const Problem problem =
      checked_problem(value, level_shapes, sampling_locations, attention_weights, kPlainNames);
  return forward(Call(problem, value, sampling_locations, attention_weights, Tensor()));
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                                           at::IntArrayRef level_shapes,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights) {
  const Problem problem =
      checked_problem(value, level_shapes, sampling_locations, attention_weights, kPlainNames);
  check_output_gradient(problem, value, grad_output);
  const Call call(problem, value, sampling_locations, attention_weights, Tensor());
  const CallGradients gradients = backward(call, grad_output, false);
  return {gradients.value, gradients.locations.to(sampling_locations.scalar_type()),
          gradients.weights.to(attention_weights.scalar_type())};
}

Tensor ms_deform_attn_fused(const Tensor& value, at::IntArrayRef level_shapes, const Tensor& reference_points,
                            const Tensor& sampling_offsets, const Tensor& attention_logits) {
  const Problem problem = checked_problem(value, level_shapes, sampling_offsets, attention_logits, kFusedNames);
  check_reference(problem, value, reference_points);
  return forward(Call(problem, value, sampling_offsets, attention_logits, reference_points));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& grad_output, const Tensor& value, at::IntArrayRef level_shapes, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, bool wants_reference_gradient) {
  const Problem problem = checked_problem(value, level_shapes, sampling_offsets, attention_logits, kFusedNames);
  check_reference(problem, value, reference_points);
  check_output_gradient(problem, value, grad_output);
  const Call call(problem, value, sampling_offsets, attention_logits, reference_points);
  const CallGradients gradients = backward(call, grad_output, wants_reference_gradient);
  const Tensor reference = wants_reference_gradient
                               ? gradients.reference.sum(0).to(reference_points.scalar_type())
                               : at::empty({0}, reference_points.options());
  return {gradients.value, reference, gradients.locations.to(sampling_offsets.scalar_type()),
          gradients.weights.to(attention_logits.scalar_type())};
}

TORCH_LIBRARY_IMPL(tokendetr, CPU, library) {
  library.impl("ms_deform_attn", ms_deform_attn);
  library.impl("ms_deform_attn_backward", ms_deform_attn_backward);
  library.impl("ms_deform_attn_fused", ms_deform_attn_fused);
  library.impl("ms_deform_attn_fused_backward", ms_deform_attn_fused_backward);
}

}  // namespace
}  // namespace tokendetr
