// The CUDA kernels as operators. Compiled where PyTorch has CUDA.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "../arguments.h"
#include "kernels.h"

namespace tokendetr {
namespace {

using at::Tensor;

cuda::Storage storage_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case at::kDouble:
      return cuda::Storage::kFloat64;
    case at::kBFloat16:
      return cuda::Storage::kBFloat16;
    case at::kHalf:
      return cuda::Storage::kFloat16;
    default:
      return cuda::Storage::kFloat32;
  }
}

struct Call {
  Problem problem;
  cuda::Storage storage;
  Tensor value, locations, weights, reference;
  cuda::Inputs inputs;

  Call(const Problem& sizes, const Tensor& values, const Tensor& sample_locations, const Tensor& sample_weights,
       const Tensor& references)
      : problem(sizes), storage(storage_of(values)), value(values.contiguous()) {
    // Vector loads need the alignment that a view into a larger tensor may lack.
    if (reinterpret_cast<uintptr_t>(value.const_data_ptr()) % 16 != 0) value = value.clone();
    const at::ScalarType type = coordinate_type(values);
    locations = sample_locations.to(type).contiguous();
    weights = sample_weights.to(type).contiguous();
    if (references.defined()) reference = references.to(type).contiguous();
    inputs = {value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(),
              reference.defined() ? reference.const_data_ptr() : nullptr,
              reference.defined() ? static_cast<int>(reference.size(3)) : 0};
  }

  bool empty() const { return problem.batch == 0 || problem.queries == 0; }
};

Tensor forward(const Call& call) {
  const c10::cuda::CUDAGuard guard(call.value.device());
  const Problem& p = call.problem;
  Tensor output = at::empty({p.batch, p.queries, p.heads * p.width}, call.value.options());
  if (call.empty()) return output;
  C10_CUDA_CHECK(cuda::forward(p, call.storage, call.inputs, output.mutable_data_ptr(),
                               c10::cuda::getCurrentCUDAStream()));
  return output;
}

struct CallGradients {
  Tensor value, locations, weights, reference;
};

// Integers add up to the same sum in every order. The scale leaves room for every sample to hit one pixel.
double fixed_point_scale(const Call& call, const Tensor& grad_output) {
  const double largest_weight =
      call.reference.defined() ? 1.0 : call.weights.abs().max().to(at::kDouble).item<double>();
  const double bound = grad_output.abs().max().to(at::kDouble).item<double>() * largest_weight *
                       static_cast<double>(call.problem.queries * call.problem.samples());
  if (!std::isfinite(bound)) return std::nan("");
  return bound > 0 ? std::exp2(61 - std::ceil(std::log2(bound))) : 1.0;
}

CallGradients backward(const Call& call, const Tensor& grad_output, bool wants_reference) {
  const c10::cuda::CUDAGuard guard(call.value.device());
  const Problem& p = call.problem;
  const at::ScalarType type = coordinate_type(call.value);
  CallGradients result;
  result.locations = at::empty_like(call.locations);
  result.weights = at::empty_like(call.weights);
  if (wants_reference) {
    result.reference = at::zeros({p.heads, p.batch, p.queries, p.levels, call.reference.size(3)},
                                 call.reference.options());
  }
  if (call.empty()) {
    result.value = at::zeros_like(call.value);
    return result;
  }
  Tensor incoming = grad_output.contiguous();
  if (reinterpret_cast<uintptr_t>(incoming.const_data_ptr()) % 16 != 0) incoming = incoming.clone();
  cuda::Gradients gradients{incoming.const_data_ptr(), nullptr, nullptr, 1.0, result.locations.mutable_data_ptr(),
                            result.weights.mutable_data_ptr(),
                            wants_reference ? result.reference.mutable_data_ptr() : nullptr};
  Tensor sums;
  const bool deterministic = at::globalContext().deterministicAlgorithms();
  bool finite = true;
  if (deterministic) {
    gradients.fixed_scale = fixed_point_scale(call, incoming);
    finite = std::isfinite(gradients.fixed_scale);
    if (!finite) gradients.fixed_scale = 0;
    sums = at::zeros_like(call.value, call.value.options().dtype(at::kLong));
    gradients.fixed_value = static_cast<long long*>(sums.mutable_data_ptr());
  } else {
    sums = at::zeros_like(call.value, call.value.options().dtype(type));
    gradients.value = sums.mutable_data_ptr();
  }
  C10_CUDA_CHECK(cuda::backward(p, call.storage, call.inputs, gradients, c10::cuda::getCurrentCUDAStream()));
  if (!deterministic) {
    result.value = sums.to(call.value.scalar_type());
  } else if (finite) {
    result.value = sums.to(at::kDouble).mul_(1.0 / gradients.fixed_scale).to(call.value.scalar_type());
  } else {
    result.value = at::full_like(call.value, std::nan(""));  // a gradient that is not finite spreads everywhere
  }
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

TORCH_LIBRARY_IMPL(tokendetr, CUDA, library) {
  library.impl("ms_deform_attn", ms_deform_attn);
  library.impl("ms_deform_attn_backward", ms_deform_attn_backward);
  library.impl("ms_deform_attn_fused", ms_deform_attn_fused);
  library.impl("ms_deform_attn_fused_backward", ms_deform_attn_fused_backward);
}

}  // namespace
}  // namespace tokendetr
