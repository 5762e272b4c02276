#include "arguments.h"

#include <initializer_list>
#include <limits>

namespace tokendetr {
namespace {

// `basis`: what its shape follows from, for the message.
void check_tensor(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape, const Tensor& value,
                  const char* basis) {
  const Sizes wanted(shape.begin(), shape.size());
  TOKENDETR_CHECK_ARGUMENT(same_shape(tensor.sizes(), wanted), name, " must have shape ", Shown{wanted}, " (from ",
                           basis, "), got ", shape_of(tensor));
  TOKENDETR_CHECK_ARGUMENT(place_of(tensor) == place_of(value), name, " is on ", place_of(tensor), ", value on ",
                           place_of(value));
  const ScalarType wide = sum_type(value), own = value.scalar_type(), type = tensor.scalar_type();
  TOKENDETR_CHECK_ARGUMENT(type == wide || type == own, name, " must be ", name_of(wide), " or value's dtype ",
                           name_of(own), ", got ", name_of(type));
}

void check_value(const Tensor& value) {
  TOKENDETR_CHECK_ARGUMENT(value.dim() == 4, "value must have shape [B, N, M, D], got ", shape_of(value));
  TOKENDETR_CHECK_ARGUMENT(is_float(value.scalar_type()), "value must be float64, float32, bfloat16 or float16, got ",
                           name_of(value.scalar_type()));
  TOKENDETR_CHECK_ARGUMENT(value.size(2) >= 1 && value.size(3) >= 1,
                           "value needs at least one head and one channel, got ", shape_of(value));
}

void read_levels(Sizes level_shapes, const Tensor& value, Problem& problem) {
  const int64_t numbers = static_cast<int64_t>(level_shapes.size());
  TOKENDETR_CHECK_ARGUMENT(numbers >= 2 && numbers % 2 == 0 && numbers / 2 <= kMaxLevels,
                           "level_shapes must have 1 to ", kMaxLevels, " (height, width) pairs, got ",
                           Shown{level_shapes});
  problem.levels = static_cast<int>(numbers / 2);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 8;  // token numbers are 32 bits, borders included
  int64_t tokens = 0;
  for (int l = 0; l < problem.levels; ++l) {
    const int64_t height = level_shapes[2 * l], width = level_shapes[2 * l + 1];
    TOKENDETR_CHECK_ARGUMENT(height > 0 && width > 0, "level_shapes must be positive, got ", Shown{level_shapes});
    TOKENDETR_CHECK_ARGUMENT(height <= kMost && width <= kMost && height * width <= kMost - tokens,
                             "level_shapes are too large: at most ", kMost, " tokens are supported, got ",
                             Shown{level_shapes});
    problem.level[l] = {height, width, tokens};
    tokens += height * width;
  }
  TOKENDETR_CHECK_ARGUMENT(tokens == value.size(1), "level_shapes add up to ", tokens, " tokens, value has ",
                           value.size(1));
}

}  // namespace

Problem checked_problem(const Tensor& value, Sizes level_shapes, const Tensor& locations, const Tensor& weights,
                        const SampleNames& names) {
  check_value(value);
  Problem problem{};
  read_levels(level_shapes, value, problem);
  TOKENDETR_CHECK_ARGUMENT(locations.dim() == 6, names.locations, " must have shape [B, Q, M, L, P, 2], got ",
                           shape_of(locations));
  const int64_t points = locations.size(4);
  TOKENDETR_CHECK_ARGUMENT(points >= 1 && points <= kMaxSamples / problem.levels, names.locations, " must have 1 to ",
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

void check_reference(const Problem& problem, const Tensor& value, const Tensor& reference) {
  TOKENDETR_CHECK_ARGUMENT(reference.dim() == 4 && (reference.size(3) == 2 || reference.size(3) == 4),
                           "reference_points must have shape [B, Q, L, 2 or 4], got ", shape_of(reference));
  check_tensor("reference_points", reference, {problem.batch, problem.queries, problem.levels, reference.size(3)},
               value, "value, level_shapes and sampling_offsets");
}

void check_output_gradient(const Problem& problem, const Tensor& value, const Tensor& gradient) {
  TOKENDETR_CHECK_ARGUMENT(gradient.scalar_type() == value.scalar_type(), "grad_output must have value's dtype ",
                           name_of(value.scalar_type()), ", got ", name_of(gradient.scalar_type()));
  check_tensor("grad_output", gradient, {problem.batch, problem.queries, problem.heads * problem.width}, value,
               "value and the queries");
}

}  // namespace tokendetr
