// The plain kernels as operators.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "baseline.h"

namespace baseline {
namespace {

using at::Tensor;

Sizes sizes_of(const Tensor& value, at::IntArrayRef level_shapes, const Tensor& locations, const Tensor& weights) {
  for (const Tensor& tensor : {value, locations, weights}) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous(), "tensors must be dense and float32");
  }
  TORCH_CHECK(level_shapes.size() <= 2 * kMaxLevels && value.size(3) <= 1024, "too many levels or channels");
  Sizes s{static_cast<int>(value.size(0)),
          static_cast<int>(value.size(1)),
          static_cast<int>(value.size(2)),
          static_cast<int>(value.size(3)),
          static_cast<int>(locations.size(1)),
          static_cast<int>(locations.size(3)),
          static_cast<int>(locations.size(4)),
          {},
          {},
          {}};
  int start = 0;
  for (int l = 0; l < s.levels; ++l) {
    s.height[l] = static_cast<int>(level_shapes[2 * l]);
    s.columns[l] = static_cast<int>(level_shapes[2 * l + 1]);
    s.start[l] = start;
    start += s.height[l] * s.columns[l];
  }
  return s;
}

void check_launch(cudaError_t status) {
  TORCH_CHECK(status == cudaSuccess, "launching the plain kernel failed: ", cudaGetErrorString(status));
}

Inputs inputs_of(const Tensor& value, const Tensor& locations, const Tensor& weights) {
  return {value.const_data_ptr<float>(), locations.const_data_ptr<float>(), weights.const_data_ptr<float>()};
}

Tensor run_forward(const Tensor& value, at::IntArrayRef level_shapes, const Tensor& locations, const Tensor& weights) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Sizes s = sizes_of(value, level_shapes, locations, weights);
  Tensor output = at::empty({s.batch, s.queries, s.heads * s.width}, value.options());
  check_launch(forward(s, inputs_of(value, locations, weights), output.mutable_data_ptr<float>(),
                       c10::cuda::getCurrentCUDAStream()));
  return output;
}

std::tuple<Tensor, Tensor, Tensor> run_backward(const Tensor& incoming, const Tensor& value,
                                                at::IntArrayRef level_shapes, const Tensor& locations,
                                                const Tensor& weights) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Sizes s = sizes_of(value, level_shapes, locations, weights);
  const Tensor to_value = at::zeros_like(value), to_locations = at::empty_like(locations);
  const Tensor to_weights = at::empty_like(weights), dense = incoming.contiguous();
  const Gradients to{to_value.mutable_data_ptr<float>(), to_locations.mutable_data_ptr<float>(),
                     to_weights.mutable_data_ptr<float>()};
  check_launch(backward(s, inputs_of(value, locations, weights), dense.const_data_ptr<float>(), to,
                        c10::cuda::getCurrentCUDAStream()));
  return {to_value, to_locations, to_weights};
}

TORCH_LIBRARY(plain_ms_deform_attn, library) {
  library.def("forward(Tensor value, int[] level_shapes, Tensor locations, Tensor weights) -> Tensor", run_forward);
  library.def(
      "backward(Tensor incoming, Tensor value, int[] level_shapes, Tensor locations, Tensor weights)"
      " -> (Tensor, Tensor, Tensor)",
      run_backward);
}

}  // namespace
}  // namespace baseline
