// The CUDA kernels as operators. Compiled where PyTorch has CUDA.
#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../../common/tensors.h"
#include "../operators.h"
#include "kernels.h"

namespace tokendetr {
namespace {

using at::Tensor;

// Vector loads need the alignment that a view into a larger tensor may lack.
Tensor aligned(const Tensor& tensor, at::ScalarType type) {
  const Tensor result = tensor.to(type).contiguous();
  return reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0 ? result : result.clone();
}

struct Call {
  Problem problem;
  Storage storage;
  Tensor value, locations, weights, reference;
  cuda::Inputs inputs;

  Call(const Problem& sizes, const Tensor& values, const Tensor& sample_locations, const Tensor& sample_weights,
       const Tensor& references)
      : problem(sizes), storage(storage_of(values)), value(aligned(values, values.scalar_type())) {
    const char* reason = cuda::unsupported(problem);
    TORCH_CHECK_VALUE(reason == nullptr, "value is too large for the CUDA kernels: ", reason, ", got ",
                      values.sizes());
    const at::ScalarType type = sum_type(values);
    locations = aligned(sample_locations, type);
    weights = aligned(sample_weights, type);
    if (references.defined()) reference = aligned(references, type);
    inputs = {value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(),
              reference.defined() ? reference.const_data_ptr() : nullptr,
              reference.defined() ? static_cast<int>(reference.size(3)) : 0};
  }

  bool empty() const { return problem.batch == 0 || problem.queries == 0; }
};

void check_cuda(const char* what, cudaError_t status) {
  TORCH_CHECK(status == cudaSuccess, "ms_deform_attn: ", what, " failed: ", cudaGetErrorString(status));
}

// For the current device.
cuda::Launch current_launch() {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  int multiprocessors = 0;
  check_cuda("asking for the number of multiprocessors",
             cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device_index()));
  return {stream.stream(), multiprocessors};
}

Tensor forward(const Call& call) {
  const c10::cuda::CUDAGuard guard(call.value.device());
  const Problem& p = call.problem;
  Tensor output = at::empty({p.batch, p.queries, p.heads * p.width}, call.value.options());
  if (call.empty()) return output;
  check_cuda("launching the forward kernel",
             cuda::forward(p, call.storage, call.inputs, output.mutable_data_ptr(), current_launch()));
  return output;
}

// The deterministic value gradient: samples sorted by the cell they lie in, then a sum per pixel in that order.
Tensor sorted_value_gradient(const Call& call, const Tensor& incoming, const Tensor& cells, const Tensor& shares) {
  const Problem& p = call.problem;
  Tensor gradient = at::empty_like(call.value);
  const Tensor all_cells =
      at::arange(p.heads * cuda::cells_per_head(p) + 1, call.value.options().dtype(at::kInt));
  for (int64_t image = 0; image < p.batch; ++image) {
    const auto [sorted, order] = at::sort(cells[image].flatten(), /*stable=*/true, /*dim=*/0, /*descending=*/false);
    const Tensor starts = at::searchsorted(sorted, all_cells);
    const cuda::SortedSamples samples{image, order.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>()};
    check_cuda("launching the collecting kernel",
               cuda::collect(p, call.storage, incoming.const_data_ptr(), shares.const_data_ptr(), samples,
                             gradient.mutable_data_ptr(), current_launch()));
  }
  return gradient;
}

CallGradients backward(const Call& call, const Tensor& grad_output, bool wants_reference) {
  const c10::cuda::CUDAGuard guard(call.value.device());
  const Problem& p = call.problem;
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
  const Tensor incoming = aligned(grad_output, call.value.scalar_type());
  cuda::Gradients gradients{incoming.const_data_ptr(), nullptr, result.locations.mutable_data_ptr(),
                            result.weights.mutable_data_ptr(),
                            wants_reference ? result.reference.mutable_data_ptr() : nullptr, {nullptr, nullptr}};
  const bool deterministic = at::globalContext().deterministicAlgorithms();
  Tensor sums, cells, shares;
  if (deterministic) {
    cells = at::empty(call.weights.sizes(), call.weights.options().dtype(at::kInt));
    shares = at::empty({call.weights.numel(), 3}, call.weights.options());
    gradients.notes = {cells.mutable_data_ptr<int32_t>(), shares.mutable_data_ptr()};
  } else {
    sums = at::zeros(call.value.sizes(), call.weights.options());
    gradients.value = sums.mutable_data_ptr();
  }
  check_cuda("launching the backward kernel",
             cuda::backward(p, call.storage, call.inputs, gradients, current_launch()));
  result.value = deterministic ? sorted_value_gradient(call, incoming, cells, shares)
                               : sums.to(call.value.scalar_type());
  return result;
}

TORCH_LIBRARY_IMPL(tokendetr, CUDA, library) { Operators<Call, forward, backward>::add_to(library); }

}  // namespace
}  // namespace tokendetr
