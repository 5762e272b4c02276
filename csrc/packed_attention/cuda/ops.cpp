// The CUDA kernels as operators. Compiled where PyTorch has CUDA.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../arguments.h"
#include "kernels.h"

namespace tokendetr::packed {
namespace {

using at::Tensor;
using Optional = const std::optional<Tensor>&;

void check_cuda(const char* what, cudaError_t status) {
  TORCH_CHECK(status == cudaSuccess, "packed_attention: launching ", what, " failed: ", cudaGetErrorString(status));
}

// Prepared as wide loads need it.
Prepared prepared(const Arguments& arguments) {
  const Problem problem = checked_problem(arguments);
  const Storage storage = storage_of(arguments.query);
  TORCH_CHECK_VALUE(problem.width <= cuda::widest(storage), "query has too wide heads for the CUDA kernels: at most ",
                    cuda::widest(storage), " channels of ", arguments.query.scalar_type(), ", got ",
                    arguments.query.sizes());
  return Prepared(arguments, cuda::load_bytes(problem, storage));
}

Tensor empty_like_query(const Prepared& call) {
  const Problem& p = call.problem;
  return at::empty({p.containers, p.slots, p.heads, p.width}, call.query.options());
}

Tensor packed_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& segment,
                        double scale, Optional position, Optional bias_table, Optional key_bias) {
  const Prepared call = prepared({query, key, value, segment, scale, position, bias_table, key_bias});
  const c10::cuda::CUDAGuard guard(query.device());
  Tensor output = empty_like_query(call);
  if (call.empty()) return output;
  check_cuda("the forward kernel",
             cuda::forward(call.problem, call.storage, call.inputs(), call.segment.const_data_ptr<int32_t>(),
                           write_of(output), c10::cuda::getCurrentCUDAStream()));
  return output;
}

struct CallGradients {
  Tensor query, key, value, table, key_bias;
};

CallGradients backward(const Prepared& call, const Tensor& grad_output, bool wants_table, bool wants_key_bias) {
  const Problem& p = call.problem;
  const auto wide = call.query.options().dtype(sum_type(call.query));
  CallGradients result{empty_like_query(call), empty_like_query(call), empty_like_query(call), Tensor(), Tensor()};
  if (wants_table) {
    const int64_t parts = cuda::work_of(p, call.storage, true).parts();
    result.table = at::zeros({parts, p.heads, p.side(), p.side()}, wide);
  }
  if (wants_key_bias) result.key_bias = at::zeros({p.containers, p.heads, p.slots}, wide);
  if (call.empty()) return result;
  const Tensor incoming = dense_rows(grad_output, cuda::load_bytes(p, call.storage));
  Tensor statistics = at::empty({p.containers, p.heads, p.slots, 3}, wide);
  const cuda::Gradients gradients{read_of(incoming),
                                  write_of(result.query),
                                  write_of(result.key),
                                  write_of(result.value),
                                  statistics.mutable_data_ptr(),
                                  wants_table ? result.table.mutable_data_ptr() : nullptr,
                                  wants_key_bias ? result.key_bias.mutable_data_ptr() : nullptr};
  check_cuda("the backward kernels",
             cuda::backward(p, call.storage, call.inputs(), call.segment.const_data_ptr<int32_t>(), gradients,
                            c10::cuda::getCurrentCUDAStream()));
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> packed_attention_backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& segment,
    double scale, Optional position, Optional bias_table, Optional key_bias, bool wants_table_gradient,
    bool wants_key_bias_gradient) {
  const Arguments arguments{query, key, value, segment, scale, position, bias_table, key_bias};
  const Prepared call = prepared(arguments);
  check_backward(arguments, grad_output, wants_table_gradient, wants_key_bias_gradient);
  const c10::cuda::CUDAGuard guard(query.device());
  const CallGradients gradients = backward(call, grad_output, wants_table_gradient, wants_key_bias_gradient);
  const Tensor none = at::empty({0}, query.options());
  return {gradients.query, gradients.key, gradients.value,
          wants_table_gradient ? gradients.table.sum(0).to(bias_table->scalar_type()) : none,
          wants_key_bias_gradient ? gradients.key_bias.sum(1).to(key_bias->scalar_type()) : none.clone()};
}

TORCH_LIBRARY_IMPL(tokendetr, CUDA, library) {
  library.impl("packed_attention", packed_attention);
  library.impl("packed_attention_backward", packed_attention_backward);
}

}  // namespace
}  // namespace tokendetr::packed
