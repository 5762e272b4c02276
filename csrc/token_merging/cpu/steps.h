// The steps of plan_merge: each returns exactly what its chain of operators in tokendetr/tokens returns.
#pragma once

#include <tuple>

#include "../arguments.h"

namespace tokendetr::merging {

// The tokens [E] of each class's best windows, classes of the smallest windows first.
Tensor choose_windows(const Tensor& score, const Tensor& token, const Numbers& number, const Numbers& cells,
                      const Numbers& counts);

// The fields of AffinityMatch (tokendetr/tokens/aggregate.py).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> match_tokens(
    const Tensor& cosine, const Tensor& order, const OptionalTensor& valid, const OptionalTensor& score,
    const Numbers& valid_counts, const Numbers& counts, int64_t neighbors, double min_cosine);

// The fields of MergedOrder (tokendetr/tokens/merge_order.py).
std::tuple<Tensor, Tensor, Tensor, Tensor> merged_order(const Tensor& valid, const Tensor& member, const Numbers& cells,
                                                        const Numbers& number, const OptionalTensor& important,
                                                        const OptionalTensor& absorber, const Numbers& absorber_counts,
                                                        int64_t length);

}  // namespace tokendetr::merging
