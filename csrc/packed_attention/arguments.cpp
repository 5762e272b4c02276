#include "arguments.h"

#include <cmath>

namespace tokendetr::packed {
namespace {

void check_tensor(const char* name, const Tensor& tensor, Sizes shape, const Tensor& query) {
  TOKENDETR_CHECK_ARGUMENT(same_shape(tensor.sizes(), shape), name, " must have shape ", Shown{shape},
                           " (from query), got ", shape_of(tensor));
  TOKENDETR_CHECK_ARGUMENT(place_of(tensor) == place_of(query), name, " is on ", place_of(tensor), ", query on ",
                           place_of(query));
}

void check_tensor(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape, const Tensor& query) {
  check_tensor(name, tensor, Sizes(shape.begin(), shape.size()), query);
}

void check_type(const char* name, const Tensor& tensor, ScalarType one, ScalarType other) {
  const ScalarType type = tensor.scalar_type();
  const char* alternative = one == other ? "" : name_of(other);
  TOKENDETR_CHECK_ARGUMENT(type == one || type == other, name, " must be ", name_of(one), one == other ? "" : " or ",
                           alternative, ", got ", name_of(type));
}

void check_query(const Tensor& query) {
  TOKENDETR_CHECK_ARGUMENT(query.dim() == 4, "query must have shape [G, T, M, D], got ", shape_of(query));
  TOKENDETR_CHECK_ARGUMENT(is_float(query.scalar_type()), "query must be float64, float32, bfloat16 or float16, got ",
                           name_of(query.scalar_type()));
  TOKENDETR_CHECK_ARGUMENT(query.size(2) >= 1 && query.size(3) >= 1,
                           "query needs at least one head and one channel, got ", shape_of(query));
  constexpr int64_t kMost = int64_t{1} << 30;  // slots are numbered with 32 bits
  TOKENDETR_CHECK_ARGUMENT(query.size(1) < kMost, "query has too many slots per container: ", shape_of(query));
}

// Pairs are looked up with 32 bits.
constexpr int64_t kFarthest = 16383;

int64_t checked_reach(const Tensor& table, const Tensor& query) {
  TOKENDETR_CHECK_ARGUMENT(table.dim() == 3 && table.size(0) == query.size(2) && table.size(1) == table.size(2) &&
                               table.size(1) % 2 == 1 && table.size(1) / 2 <= kFarthest,
                           "bias_table must have shape [", query.size(2),
                           ", 2R + 1, 2R + 1] (heads from query), R at most ", kFarthest, ", got ", shape_of(table));
  return table.size(1) / 2;
}

}  // namespace

Problem checked_problem(const Arguments& arguments) {
  const Tensor& query = arguments.query;
  check_query(query);
  const ScalarType own = query.scalar_type(), wide = sum_type(query);
  check_tensor("key", arguments.key, query.sizes(), query);
  check_type("key", arguments.key, own, own);
  check_tensor("value", arguments.value, query.sizes(), query);
  check_type("value", arguments.value, own, own);
  check_tensor("segment", arguments.segment, {query.size(0), query.size(1)}, query);
  check_type("segment", arguments.segment, ScalarType::Int, ScalarType::Int);
  TOKENDETR_CHECK_ARGUMENT(std::isfinite(arguments.scale), "scale must be finite, got ", arguments.scale);
  Problem problem{query.size(0), query.size(1), query.size(2), query.size(3), arguments.scale, 0};
  TOKENDETR_CHECK_ARGUMENT(arguments.position.has_value() == arguments.bias_table.has_value(),
                           "position and bias_table must be given together or not at all");
  if (arguments.bias_table.has_value()) {
    check_tensor("position", *arguments.position, {query.size(0), query.size(1), 2}, query);
    check_type("position", *arguments.position, ScalarType::Int, ScalarType::Int);
    const Tensor& table = *arguments.bias_table;
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

void check_backward(const Arguments& arguments, const Tensor& grad_output, bool wants_table_gradient,
                    bool wants_key_bias_gradient) {
  const Tensor& query = arguments.query;
  check_tensor("grad_output", grad_output, query.sizes(), query);
  check_type("grad_output", grad_output, query.scalar_type(), query.scalar_type());
  TOKENDETR_CHECK_ARGUMENT(!wants_table_gradient || arguments.bias_table.has_value(),
                           "wants_table_gradient needs a bias_table");
  TOKENDETR_CHECK_ARGUMENT(!wants_key_bias_gradient || arguments.key_bias.has_value(),
                           "wants_key_bias_gradient needs a key_bias");
}

Tensor dense_rows(const Tensor& tensor, int64_t alignment) {
  const int64_t elements = alignment / static_cast<int64_t>(tensor.element_size());
  bool good = tensor.stride(3) == 1 || tensor.size(3) == 1;
  if (elements > 1) {
    for (int axis = 0; axis < 3; ++axis) good = good && (tensor.size(axis) == 1 || tensor.stride(axis) % elements == 0);
  }
  if (good && is_aligned(tensor, alignment)) return tensor;
  const Tensor copy = dense(tensor);
  return is_aligned(copy, alignment) ? copy : torch::stable::clone(copy);
}

Read read_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Write write_of(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Prepared::Prepared(const Arguments& arguments, int64_t alignment)
    : problem(checked_problem(arguments)),
      storage(storage_of(arguments.query)),
      query(dense_rows(arguments.query, alignment)),
      key(dense_rows(arguments.key, alignment)),
      value(dense_rows(arguments.value, alignment)),
      segment(dense(arguments.segment)) {
  const ScalarType wide = sum_type(arguments.query);
  if (arguments.bias_table.has_value()) {
    position = dense(*arguments.position);
    table = dense(in_type(*arguments.bias_table, wide));
  }
  if (arguments.key_bias.has_value()) key_bias = dense(in_type(*arguments.key_bias, wide));
}

Inputs Prepared::inputs() const {
  return {read_of(query),
          read_of(key),
          read_of(value),
          table ? position->const_data_ptr<int32_t>() : nullptr,
          table ? table->const_data_ptr() : nullptr,
          key_bias ? key_bias->const_data_ptr() : nullptr};
}

}  // namespace tokendetr::packed
