// All of a stage's choices in one call: which windows merge, which tokens absorb others, and the order that results.
#include <map>

#include "operators.h"
#include "steps.h"

namespace tokendetr::merging {
namespace {

// The chosen windows of each size, smallest first.
struct ChosenSizes {
  Numbers cells, number;

  ChosenSizes(const Numbers& cells_of_classes, const Numbers& counts) {
    std::map<int64_t, int64_t> found;
    for (size_t g = 0; g < counts.size(); ++g) found[cells_of_classes[g]] += counts[g];
    for (const auto& [size, count] : found) {
      cells.push_back(size);
      number.push_back(count);
    }
  }
};

}  // namespace

PlannedMerge plan_merge(const Tensor& valid, int64_t length, const OptionalTensor& score, const OptionalTensor& token,
                        const Numbers& number, const Numbers& cells, const Numbers& counts,
                        const OptionalTensor& cosine, const OptionalTensor& order, const OptionalTensor& level_valid,
                        const OptionalTensor& level_score, const Numbers& level_counts, const Numbers& important_counts,
                        int64_t neighbors, double min_cosine, bool absorbs) {
  TOKENDETR_CHECK_ARGUMENT(score.has_value() == token.has_value(), "score and token need each other");
  TOKENDETR_CHECK_ARGUMENT(cosine.has_value() == order.has_value(), "cosine and order need each other");
  const auto none = [&valid](ScalarType type) { return empty_tensor({0}, valid, type); };
  Tensor member = none(ScalarType::Long);
  if (score.has_value()) member = choose_windows(*score, *token, number, cells, counts);
  const ChosenSizes sizes = score.has_value() ? ChosenSizes(cells, counts) : ChosenSizes({}, {});
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> match{none(ScalarType::Float), none(ScalarType::Bool),
                                                                   none(ScalarType::Long),  none(ScalarType::Long),
                                                                   none(ScalarType::Bool),  none(ScalarType::Float)};
  OptionalTensor important, absorber;
  if (cosine.has_value()) {
    match =
        match_tokens(*cosine, *order, level_valid, level_score, level_counts, important_counts, neighbors, min_cosine);
    important = std::get<1>(match);
    if (absorbs) absorber = std::get<2>(match);
  }
  const Numbers absorber_counts = absorber.has_value() ? important_counts : Numbers();
  return std::tuple_cat(
      std::make_tuple(member), match,
      merged_order(valid, member, sizes.cells, sizes.number, important, absorber, absorber_counts, length));
}

}  // namespace tokendetr::merging
