#include "arguments.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace tokendetr::packed {
namespace {

void check_tensor(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, const at::Tensor& query) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, " (from query), got ",
                    tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == query.device(), name, " is on ", tensor.device(), ", query on ",
                    query.device());
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, name, " must be a dense tensor");
}

void check_type(const char* name, const at::Tensor& tensor, at::ScalarType one, at::ScalarType other) {
  const at::ScalarType type = tensor.scalar_type();
  if (one == other) {
    TORCH_CHECK_TYPE(type == one, name, " must be ", one, ", got ", type);
  } else {
    TORCH_CHECK_TYPE(type == one || type == other, name, " must be ", one, " or ", other, ", got ", type);
  }
}

void check_query(const at::Tensor& query) {
  TORCH_CHECK_VALUE(query.dim() == 4, "query must have shape [G, T, M, D], got ", query.sizes());
  TORCH_CHECK_VALUE(query.layout() == at::kStrided, "query must be a dense tensor");
  const at::ScalarType type = query.scalar_type();
  TORCH_CHECK_TYPE(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                   "query must be float64, float32, bfloat16 or float16, got ", type);
  TORCH_CHECK_VALUE(query.size(2) >= 1 && query.size(3) >= 1, "query needs at least one head and one channel, got ",
                    query.sizes());
  constexpr int64_t kMost = int64_t{1} << 30;  // slots are numbered with 32 bits
  TORCH_CHECK_VALUE(query.size(1) < kMost, "query has too many slots per container: ", query.sizes());
}

// Pairs are looked up with 32 bits.
constexpr int64_t kFarthest = 16383;

int64_t checked_reach(const at::Tensor& table, const at::Tensor& query) {
  TORCH_CHECK_VALUE(table.dim() == 3 && table.size(0) == query.size(2) && table.size(1) == table.size(2) &&
                        table.size(1) % 2 == 1 && table.size(1) / 2 <= kFarthest,
                    "bias_table must have shape [", query.size(2), ", 2R + 1, 2R + 1] (heads from query), R at most ",
                    kFarthest, ", got ", table.sizes());
  return table.size(1) / 2;
}

}  // namespace

Problem checked_problem(const Arguments& arguments) {
  const at::Tensor& query = arguments.query;
  check_query(query);
  const at::ScalarType own = query.scalar_type(), wide = sum_type(query);
  check_tensor("key", arguments.key, query.sizes(), query);
  check_type("key", arguments.key, own, own);
  check_tensor("value", arguments.value, query.sizes(), query);
  check_type("value", arguments.value, own, own);
  check_tensor("segment", arguments.segment, {query.size(0), query.size(1)}, query);
  check_type("segment", arguments.segment, at::kInt, at::kInt);
  TORCH_CHECK_VALUE(std::isfinite(arguments.scale), "scale must be finite, got ", arguments.scale);
  Problem problem{query.size(0), query.size(1), query.size(2), query.size(3), arguments.scale, 0};
  TORCH_CHECK_VALUE(arguments.position.has_value() == arguments.bias_table.has_value(),
                    "position and bias_table must be given together or not at all");
  if (arguments.bias_table.has_value()) {
    check_tensor("position", *arguments.position, {query.size(0), query.size(1), 2}, query);
    check_type("position", *arguments.position, at::kInt, at::kInt);
    const at::Tensor& table = *arguments.bias_table;
    problem.reach = checked_reach(table, query);
    check_tensor("bias_table", table, table.sizes(), query);
    check_type("bias_table", table, wide, own);
  }
  if (arguments.key_bias.has_value()) {
    check_tensor("key_bias", *arguments.key_bias, {query.size(0), query.size(1)}, query);
    check_type("key_bias", *arguments.key_bias, wide, own);
  }
  return problem;
}

void check_backward(const Arguments& arguments, const at::Tensor& grad_output, bool wants_table_gradient,
                    bool wants_key_bias_gradient) {
  const at::Tensor& query = arguments.query;
  check_tensor("grad_output", grad_output, query.sizes(), query);
  check_type("grad_output", grad_output, query.scalar_type(), query.scalar_type());
  TORCH_CHECK_VALUE(!wants_table_gradient || arguments.bias_table.has_value(),
                    "wants_table_gradient needs a bias_table");
  TORCH_CHECK_VALUE(!wants_key_bias_gradient || arguments.key_bias.has_value(),
                    "wants_key_bias_gradient needs a key_bias");
}

at::Tensor dense_rows(const at::Tensor& tensor, int64_t alignment) {
  const int64_t elements = alignment / static_cast<int64_t>(tensor.element_size());
  bool good = tensor.stride(3) == 1 || tensor.size(3) == 1;
  if (elements > 1) {
    for (int axis = 0; axis < 3; ++axis) good = good && (tensor.size(axis) == 1 || tensor.stride(axis) % elements == 0);
  }
  if (good && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % alignment == 0) return tensor;
  const at::Tensor dense = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % alignment == 0 ? dense : dense.clone();
}

Read read_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Write write_of(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Prepared::Prepared(const Arguments& arguments, int64_t alignment)
    : problem(checked_problem(arguments)),
      storage(storage_of(arguments.query)),
      query(dense_rows(arguments.query, alignment)),
      key(dense_rows(arguments.key, alignment)),
      value(dense_rows(arguments.value, alignment)),
      segment(arguments.segment.contiguous()) {
  const at::ScalarType wide = sum_type(arguments.query);
  if (arguments.bias_table.has_value()) {
    position = arguments.position->contiguous();
    table = arguments.bias_table->to(wide).contiguous();
  }
  if (arguments.key_bias.has_value()) key_bias = arguments.key_bias->to(wide).contiguous();
}

Inputs Prepared::inputs() const {
  return {read_of(query),
          read_of(key),
          read_of(value),
          table.defined() ? position.const_data_ptr<int32_t>() : nullptr,
          table.defined() ? table.const_data_ptr() : nullptr,
          key_bias.defined() ? key_bias.const_data_ptr() : nullptr};
}

}  // namespace tokendetr::packed
