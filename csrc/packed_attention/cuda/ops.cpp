// The CUDA kernels as operators. Compiled if PyTorch has CUDA.
#include <tuple>

#include "../../common/cuda/stream.h"
#include "../arguments.h"
#include "../registration.h"
#include "kernels.h"

namespace tokendetr::packed {
namespace {

using Optional = const OptionalTensor&;

void check_cuda(const char* what, cudaError_t status) { check_status("packed_attention", what, status); }

// Prepared as wide loads need it.
Prepared prepared(const Arguments& arguments) {
  const Problem problem = checked_problem(arguments);
  const Storage storage = storage_of(arguments.query);
  TOKENDETR_CHECK_ARGUMENT(problem.width <= cuda::widest(storage),
                           "query has too wide heads for the CUDA kernels: at most ", cuda::widest(storage),
                           " channels of ", name_of(arguments.query.scalar_type()), ", got ",
                           shape_of(arguments.query));
  return Prepared(arguments, cuda::load_bytes(problem, storage));
}

Tensor empty_like_query(const Prepared& call) {
  const Problem& p = call.problem;
  return empty_tensor({p.containers, p.slots, p.heads, p.width}, call.query, call.query.scalar_type());
}

Tensor packed_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& segment,
                        double scale, Optional position, Optional bias_table, Optional key_bias) {
  const Prepared call = prepared({query, key, value, segment, scale, position, bias_table, key_bias});
  const DeviceGuard guard(query.get_device_index());
  const Tensor output = empty_like_query(call);
  if (call.empty()) return output;
  check_cuda("launching the forward kernel",
             cuda::forward(call.problem, call.storage, call.inputs(), call.segment.const_data_ptr<int32_t>(),
                           write_of(output), current_stream(call.query)));
  return output;
}

struct CallGradients {
  Tensor query, key, value;
  OptionalTensor table, key_bias;
};

CallGradients backward(const Prepared& call, const Tensor& grad_output, bool wants_table, bool wants_key_bias) {
  const Problem& p = call.problem;
  const ScalarType wide = sum_type(call.query);
  CallGradients result{empty_like_query(call), empty_like_query(call), empty_like_query(call), std::nullopt,
                       std::nullopt};
  if (wants_table) {
    const int64_t parts = cuda::work_of(p, call.storage, true).parts();
    result.table = zeros_tensor({parts, p.heads, p.side(), p.side()}, call.query, wide);
  }
  if (wants_key_bias) result.key_bias = zeros_tensor({p.containers, p.heads, p.slots}, call.query, wide);
  if (call.empty()) return result;
  const Tensor incoming = dense_rows(grad_output, cuda::load_bytes(p, call.storage));
  const Tensor statistics = empty_tensor({p.containers, p.heads, p.slots, 3}, call.query, wide);
  const cuda::Gradients gradients{read_of(incoming),
                                  write_of(result.query),
                                  write_of(result.key),
                                  write_of(result.value),
                                  statistics.mutable_data_ptr(),
                                  wants_table ? result.table->mutable_data_ptr() : nullptr,
                                  wants_key_bias ? result.key_bias->mutable_data_ptr() : nullptr};
  check_cuda("launching the backward kernels",
             cuda::backward(p, call.storage, call.inputs(), call.segment.const_data_ptr<int32_t>(), gradients,
                            current_stream(call.query)));
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> packed_attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& segment,
    double scale, Optional position, Optional bias_table, Optional key_bias, bool wants_table_gradient,
    bool wants_key_bias_gradient) {
  const Arguments arguments{query, key, value, segment, scale, position, bias_table, key_bias};
  const Prepared call = prepared(arguments);
  check_backward(arguments, grad_output, wants_table_gradient, wants_key_bias_gradient);
  const DeviceGuard guard(query.get_device_index());
  const CallGradients gradients = backward(call, grad_output, wants_table_gradient, wants_key_bias_gradient);
  const auto none = [&] { return empty_tensor({0}, query, query.scalar_type()); };
  return {gradients.query, gradients.key, gradients.value,
          gradients.table ? summed(*gradients.table, 0, bias_table->scalar_type()) : none(),
          gradients.key_bias ? summed(*gradients.key_bias, 1, key_bias->scalar_type()) : none()};
}

}  // namespace

void add_cuda_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("packed_attention", TORCH_BOX(&packed_attention));
  library.impl("packed_attention_backward", TORCH_BOX(&packed_attention_backward));
}

}  // namespace tokendetr::packed
