// The CUDA kernels as operators. Compiled if PyTorch has CUDA.
#include <algorithm>

#include "../../common/cuda/stream.h"
#include "../operators.h"
#include "../registration.h"
#include "kernels.h"

namespace tokendetr {
namespace {

// Vector loads need the alignment that a view into a larger tensor may lack.
Tensor aligned(const Tensor& tensor, ScalarType type) {
  const Tensor result = dense(in_type(tensor, type));
  return is_aligned(result, 16) ? result : torch::stable::clone(result);
}

struct Call {
  Problem problem;
  Storage storage;
  Tensor value, locations, weights;
  OptionalTensor reference;
  cuda::Inputs inputs;

  Call(const Problem& sizes, const Tensor& values, const Tensor& sample_locations, const Tensor& sample_weights,
       const OptionalTensor& references)
      : problem(sizes),
        storage(storage_of(values)),
        value(aligned(values, values.scalar_type())),
        locations(aligned(sample_locations, sum_type(values))),
        weights(aligned(sample_weights, sum_type(values))) {
    const char* reason = cuda::unsupported(problem);
    TOKENDETR_CHECK_ARGUMENT(reason == nullptr, "value is too large for the CUDA kernels: ", reason, ", got ",
                             shape_of(values));
    if (references) reference = aligned(*references, sum_type(values));
    inputs = {value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(),
              reference ? reference->const_data_ptr() : nullptr, reference ? static_cast<int>(reference->size(3)) : 0};
  }

  bool empty() const { return problem.batch == 0 || problem.queries == 0; }
};

void check_cuda(const char* what, cudaError_t status) { check_status("ms_deform_attn", what, status); }

cuda::Launch launch_for(const Call& call) {
  const int device = call.value.get_device_index();
  int multiprocessors = 0;
  check_cuda("asking for the number of multiprocessors",
             cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  return {current_stream(call.value), multiprocessors};
}

Tensor forward(const Call& call) {
  const DeviceGuard guard(call.value.get_device_index());
  const Problem& p = call.problem;
  const Tensor output = empty_tensor({p.batch, p.queries, p.heads * p.width}, call.value, call.value.scalar_type());
  if (call.empty()) return output;
  check_cuda("launching the forward kernel",
             cuda::forward(p, call.storage, call.inputs, output.mutable_data_ptr(), launch_for(call)));
  return output;
}

Tensor like(const Tensor& tensor) { return empty_tensor(tensor.sizes(), tensor, tensor.scalar_type()); }

struct Sorted {
  Tensor cells, order;
};

// Samples of one cell keep their order.
Sorted sorted_by_cell(const Tensor& cells) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  constexpr bool kStable = true, kDescending = false;
  constexpr int64_t kAxis = 0;
  std::array<StableIValue, 4> stack{from(cells), from(std::optional<bool>(kStable)), from(kAxis), from(kDescending)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// The deterministic value gradient: samples sorted by the cell they lie in, then a sum per pixel in that order.
Tensor sorted_value_gradient(const Call& call, const Tensor& incoming, const Tensor& cells, const Tensor& shares) {
  const Problem& p = call.problem;
  const Tensor gradient = like(call.value);
  const int64_t all_cells = p.heads * cuda::cells_per_head(p) + 1;
  const Tensor starts = empty_tensor({all_cells}, call.value, ScalarType::Long);
  for (int64_t image = 0; image < p.batch; ++image) {
    const auto [sorted, order] = sorted_by_cell(torch::stable::select(cells, 0, image));
    check_cuda("launching the kernel that finds the cells",
               cuda::find_cells(sorted.const_data_ptr<int32_t>(), sorted.numel(), all_cells,
                                starts.mutable_data_ptr<int64_t>(), launch_for(call)));
    const cuda::SortedSamples samples{image, order.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>()};
    check_cuda("launching the collecting kernel",
               cuda::collect(p, call.storage, incoming.const_data_ptr(), shares.const_data_ptr(), samples,
                             gradient.mutable_data_ptr(), launch_for(call)));
  }
  return gradient;
}

CallGradients backward(const Call& call, const Tensor& grad_output, Wanted wanted) {
  const DeviceGuard guard(call.value.get_device_index());
  const Problem& p = call.problem;
  const ScalarType wide = call.weights.scalar_type();
  CallGradients result{call.value, like(call.locations), like(call.weights), std::nullopt};
  if (wanted.reference) {
    result.reference = zeros_tensor({p.heads, p.batch, p.queries, p.levels, call.reference->size(3)}, call.value, wide);
  }
  if (call.empty()) {
    result.value = like(call.value);
    torch::stable::zero_(result.value);
    return result;
  }
  const Tensor incoming = aligned(grad_output, call.value.scalar_type());
  cuda::Gradients gradients{incoming.const_data_ptr(),
                            nullptr,
                            result.locations.mutable_data_ptr(),
                            result.weights.mutable_data_ptr(),
                            wanted.reference ? result.reference->mutable_data_ptr() : nullptr,
                            {nullptr, nullptr}};
  OptionalTensor sums, cells, shares;
  if (wanted.deterministic) {
    cells = empty_tensor({p.batch, call.weights.numel() / p.batch}, call.value, ScalarType::Int);
    shares = empty_tensor({call.weights.numel(), 3}, call.value, wide);
    gradients.notes = {cells->mutable_data_ptr<int32_t>(), shares->mutable_data_ptr()};
  } else {
    sums = empty_tensor(call.value.sizes(), call.value, wide);
    torch::stable::zero_(*sums);
    gradients.value = sums->mutable_data_ptr();
  }
  check_cuda("launching the backward kernel",
             cuda::backward(p, call.storage, call.inputs, gradients, launch_for(call)));
  result.value = wanted.deterministic ? sorted_value_gradient(call, incoming, *cells, *shares)
                                      : in_type(*sums, call.value.scalar_type());
  return result;
}

}  // namespace

void add_cuda_operators(torch::stable::detail::StableLibrary& library) {
  Operators<Call, forward, backward>::add_to(library);
}

}  // namespace tokendetr
