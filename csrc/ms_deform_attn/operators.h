// The operators of a device from its two passes: arguments are checked here, so that every device refuses the same.
#pragma once

#include <tuple>
#include <vector>

#include "arguments.h"

namespace tokendetr {

struct CallGradients {
  Tensor value, locations, weights;
  OptionalTensor reference;  // [M, B, Q, L, 2 or 4], one part per head, if it was requested
};

// Options of a backward beside the gradients of all other inputs.
struct Wanted {
  bool reference;
  bool deterministic;  // the same bits in every run
};

// A Call is made from a problem, value, locations, weights and reference points (absent in the plain form).
template <class Call, Tensor (*kForward)(const Call&), CallGradients (*kBackward)(const Call&, const Tensor&, Wanted)>
struct Operators {
  using Shapes = const std::vector<int64_t>&;

  static Tensor plain(const Tensor& value, Shapes level_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
    const Problem problem = checked_problem(value, level_shapes, sampling_locations, attention_weights, kPlainNames);
    return kForward(Call(problem, value, sampling_locations, attention_weights, std::nullopt));
  }

  static std::tuple<Tensor, Tensor, Tensor> plain_backward(const Tensor& grad_output, const Tensor& value,
                                                           Shapes level_shapes, const Tensor& sampling_locations,
                                                           const Tensor& attention_weights, bool deterministic) {
    const Problem problem = checked_problem(value, level_shapes, sampling_locations, attention_weights, kPlainNames);
    check_output_gradient(problem, value, grad_output);
    const Call call(problem, value, sampling_locations, attention_weights, std::nullopt);
    const CallGradients gradients = kBackward(call, grad_output, {false, deterministic});
    return {gradients.value, in_type(gradients.locations, sampling_locations.scalar_type()),
            in_type(gradients.weights, attention_weights.scalar_type())};
  }

  static Tensor fused(const Tensor& value, Shapes level_shapes, const Tensor& reference_points,
                      const Tensor& sampling_offsets, const Tensor& attention_logits) {
    const Problem problem = checked_problem(value, level_shapes, sampling_offsets, attention_logits, kFusedNames);
    check_reference(problem, value, reference_points);
    return kForward(Call(problem, value, sampling_offsets, attention_logits, reference_points));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(const Tensor& grad_output, const Tensor& value,
                                                                   Shapes level_shapes, const Tensor& reference_points,
                                                                   const Tensor& sampling_offsets,
                                                                   const Tensor& attention_logits,
                                                                   bool wants_reference_gradient, bool deterministic) {
    const Problem problem = checked_problem(value, level_shapes, sampling_offsets, attention_logits, kFusedNames);
    check_reference(problem, value, reference_points);
    check_output_gradient(problem, value, grad_output);
    const Call call(problem, value, sampling_offsets, attention_logits, reference_points);
    const CallGradients gradients = kBackward(call, grad_output, {wants_reference_gradient, deterministic});
    const ScalarType type = reference_points.scalar_type();
    return {gradients.value,
            gradients.reference ? summed(*gradients.reference, 0, type) : empty_tensor({0}, reference_points, type),
            in_type(gradients.locations, sampling_offsets.scalar_type()),
            in_type(gradients.weights, attention_logits.scalar_type())};
  }

  static void add_to(torch::stable::detail::StableLibrary& library) {
    library.impl("ms_deform_attn", TORCH_BOX(&plain));
    library.impl("ms_deform_attn_backward", TORCH_BOX(&plain_backward));
    library.impl("ms_deform_attn_fused", TORCH_BOX(&fused));
    library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&fused_backward));
  }
};

}  // namespace tokendetr
