// The operators of a device from its two passes: arguments are checked here, so that every device refuses the same.
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "arguments.h"

namespace tokendetr {

struct CallGradients {
  at::Tensor value, locations, weights;
  at::Tensor reference;  // [M, B, Q, L, 2 or 4], one part per head, where it was asked for
};

// A Call is made from a problem, value, locations, weights and reference points (undefined in the plain form); the
// backward takes the incoming gradient and whether reference points want one.
template <class Call, at::Tensor (*kForward)(const Call&),
          CallGradients (*kBackward)(const Call&, const at::Tensor&, bool)>
struct Operators {
  using Tensor = at::Tensor;

  static Tensor plain(const Tensor& value, at::IntArrayRef level_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
    const Problem problem = checked_problem(value, level_shapes, sampling_locations, attention_weights, kPlainNames);
    return kForward(Call(problem, value, sampling_locations, attention_weights, Tensor()));
  }

  static std::tuple<Tensor, Tensor, Tensor> plain_backward(const Tensor& grad_output, const Tensor& value,
                                                           at::IntArrayRef level_shapes,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights) {
    const Problem problem = checked_problem(value, level_shapes, sampling_locations, attention_weights, kPlainNames);
    check_output_gradient(problem, value, grad_output);
    const Call call(problem, value, sampling_locations, attention_weights, Tensor());
    const CallGradients gradients = kBackward(call, grad_output, false);
    return {gradients.value, gradients.locations.to(sampling_locations.scalar_type()),
            gradients.weights.to(attention_weights.scalar_type())};
  }

  static Tensor fused(const Tensor& value, at::IntArrayRef level_shapes, const Tensor& reference_points,
                      const Tensor& sampling_offsets, const Tensor& attention_logits) {
    const Problem problem = checked_problem(value, level_shapes, sampling_offsets, attention_logits, kFusedNames);
    check_reference(problem, value, reference_points);
    return kForward(Call(problem, value, sampling_offsets, attention_logits, reference_points));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(
      const Tensor& grad_output, const Tensor& value, at::IntArrayRef level_shapes, const Tensor& reference_points,
      const Tensor& sampling_offsets, const Tensor& attention_logits, bool wants_reference_gradient) {
    const Problem problem = checked_problem(value, level_shapes, sampling_offsets, attention_logits, kFusedNames);
    check_reference(problem, value, reference_points);
    check_output_gradient(problem, value, grad_output);
    const Call call(problem, value, sampling_offsets, attention_logits, reference_points);
    const CallGradients gradients = kBackward(call, grad_output, wants_reference_gradient);
    const Tensor reference = wants_reference_gradient
                                 ? gradients.reference.sum(0).to(reference_points.scalar_type())
                                 : at::empty({0}, reference_points.options());
    return {gradients.value, reference, gradients.locations.to(sampling_offsets.scalar_type()),
            gradients.weights.to(attention_logits.scalar_type())};
  }

  static void add_to(torch::Library& library) {
    library.impl("ms_deform_attn", plain);
    library.impl("ms_deform_attn_backward", plain_backward);
    library.impl("ms_deform_attn_fused", fused);
    library.impl("ms_deform_attn_fused_backward", fused_backward);
  }
};

}  // namespace tokendetr
