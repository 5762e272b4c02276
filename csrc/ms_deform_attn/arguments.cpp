#include "arguments.h"

#include <c10/util/Exception.h>

#include <limits>

#include "../common/tensors.h"

namespace tokendetr {
namespace {

// `basis`: what its shape follows from, for the message.
void check_tensor(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, const at::Tensor& value,
                  const char* basis) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, " (from ", basis, "), got ",
                    tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == value.device(), name, " is on ", tensor.device(), ", value on ",
                    value.device());
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, name, " must be a dense tensor");
  const at::ScalarType wide = sum_type(value);
  TORCH_CHECK_TYPE(tensor.scalar_type() == wide || tensor.scalar_type() == value.scalar_type(), name, " must be ",
                   wide, " or value's dtype ", value.scalar_type(), ", got ", tensor.scalar_type());
}

void check_value(const at::Tensor& value) {
  TORCH_CHECK_VALUE(value.dim() == 4, "value must have shape [B, N, M, D], got ", value.sizes());
  TORCH_CHECK_VALUE(value.layout() == at::kStrided, "value must be a dense tensor");
  const at::ScalarType type = value.scalar_type();
  TORCH_CHECK_TYPE(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                   "value must be float64, float32, bfloat16 or float16, got ", type);
  TORCH_CHECK_VALUE(value.size(2) >= 1 && value.size(3) >= 1, "value needs at least one head and one channel, got ",
                    value.sizes());
}

void read_levels(at::IntArrayRef level_shapes, const at::Tensor& value, Problem& problem) {
  const int64_t numbers = static_cast<int64_t>(level_shapes.size());
  TORCH_CHECK_VALUE(numbers >= 2 && numbers % 2 == 0 && numbers / 2 <= kMaxLevels, "level_shapes must have 1 to ",
                    kMaxLevels, " (height, width) pairs, got ", level_shapes);
  problem.levels = static_cast<int>(numbers / 2);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 8;  // token numbers are 32 bits, borders included
  int64_t tokens = 0;
  for (int l = 0; l < problem.levels; ++l) {
    const int64_t height = level_shapes[2 * l], width = level_shapes[2 * l + 1];
    TORCH_CHECK_VALUE(height > 0 && width > 0, "level_shapes must be positive, got ", level_shapes);
    TORCH_CHECK_VALUE(height <= kMost && width <= kMost && height * width <= kMost - tokens,
                      "level_shapes are too large: at most ", kMost, " tokens are supported, got ", level_shapes);
    problem.level[l] = {height, width, tokens};
    tokens += height * width;
  }
  TORCH_CHECK_VALUE(tokens == value.size(1), "level_shapes add up to ", tokens, " tokens, value has ", value.size(1));
}

}  // namespace

Problem checked_problem(const at::Tensor& value, at::IntArrayRef level_shapes, const at::Tensor& locations,
                        const at::Tensor& weights, const SampleNames& names) {
  check_value(value);
  Problem problem{};
  read_levels(level_shapes, value, problem);
  TORCH_CHECK_VALUE(locations.dim() == 6, names.locations, " must have shape [B, Q, M, L, P, 2], got ",
                    locations.sizes());
  const int64_t points = locations.size(4);
  TORCH_CHECK_VALUE(points >= 1 && points <= kMaxSamples / problem.levels, names.locations, " must have 1 to ",
                    kMaxSamples / problem.levels, " points per level, got ", points);
  problem.batch = value.size(0);
  problem.tokens = value.size(1);
  problem.heads = value.size(2);
  problem.width = value.size(3);
  problem.queries = locations.size(1);
  problem.points = static_cast<int>(points);
  const int64_t levels = problem.levels;
  check_tensor(names.locations, locations, {problem.batch, problem.queries, problem.heads, levels, points, 2}, value,
               "value and level_shapes");
  check_tensor(names.weights, weights, {problem.batch, problem.queries, problem.heads, levels, points}, value,
               names.weights_basis);
  return problem;
}

void check_reference(const Problem& problem, const at::Tensor& value, const at::Tensor& reference) {
  TORCH_CHECK_VALUE(reference.dim() == 4 && (reference.size(3) == 2 || reference.size(3) == 4),
                    "reference_points must have shape [B, Q, L, 2 or 4], got ", reference.sizes());
  check_tensor("reference_points", reference, {problem.batch, problem.queries, problem.levels, reference.size(3)},
               value, "value, level_shapes and sampling_offsets");
}

void check_output_gradient(const Problem& problem, const at::Tensor& value, const at::Tensor& gradient) {
  TORCH_CHECK_TYPE(gradient.scalar_type() == value.scalar_type(), "grad_output must have value's dtype ",
                   value.scalar_type(), ", got ", gradient.scalar_type());
  check_tensor("grad_output", gradient, {problem.batch, problem.queries, problem.heads * problem.width}, value,
               "value and the queries");
}

}  // namespace tokendetr
