// Argument checks of the operators: every size, type and device is verified before a pointer is touched.
#pragma once

#include <ATen/core/Tensor.h>

#include "problem.h"

namespace tokendetr {

// The names of the sample tensors in messages: the plain and the fused operator call them differently.
struct SampleNames {
  const char* locations;
  const char* weights;
  const char* weights_basis;  // the arguments that the shape of the weights follows from
};
constexpr SampleNames kPlainNames{"sampling_locations", "attention_weights",
                                  "value, level_shapes and sampling_locations"};
constexpr SampleNames kFusedNames{"sampling_offsets", "attention_logits",
                                  "value, level_shapes and sampling_offsets"};

// Raises ValueError or TypeError naming the argument, else returns the sizes.
Problem checked_problem(const at::Tensor& value, at::IntArrayRef level_shapes, const at::Tensor& locations,
                        const at::Tensor& weights, const SampleNames& names);
void check_reference(const Problem& problem, const at::Tensor& value, const at::Tensor& reference);
void check_output_gradient(const Problem& problem, const at::Tensor& value, const at::Tensor& gradient);

}  // namespace tokendetr
