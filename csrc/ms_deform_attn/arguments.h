// Argument checks of the operators: every size, type and device is verified before a pointer is touched.
#pragma once

#include "../common/tensors.h"
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
constexpr SampleNames kFusedNames{"sampling_offsets", "attention_logits", "value, level_shapes and sampling_offsets"};

// Raises std::invalid_argument naming the argument, else returns the sizes.
Problem checked_problem(const Tensor& value, Sizes level_shapes, const Tensor& locations, const Tensor& weights,
                        const SampleNames& names);
void check_reference(const Problem& problem, const Tensor& value, const Tensor& reference);
void check_output_gradient(const Problem& problem, const Tensor& value, const Tensor& gradient);

}  // namespace tokendetr
