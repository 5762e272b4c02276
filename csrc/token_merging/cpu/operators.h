// The operators, as module.cpp declares them; tokendetr/ops/token_merging documents their arguments.
#pragma once

#include <tuple>

#include "../arguments.h"

namespace tokendetr::merging {

using PlannedMerge = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

PlannedMerge plan_merge(const Tensor& valid, int64_t length, const OptionalTensor& score, const OptionalTensor& token,
                        const Numbers& number, const Numbers& cells, const Numbers& counts,
                        const OptionalTensor& cosine, const OptionalTensor& order, const OptionalTensor& level_valid,
                        const OptionalTensor& level_score, const Numbers& level_counts, const Numbers& important_counts,
                        int64_t neighbors, double min_cosine, bool absorbs);

std::tuple<Tensor, Tensor> token_similarity(const Tensor& x, const Tensor& token, const Numbers& number,
                                            const Numbers& cells, int64_t start);

Tensor merge_tokens(const Tensor& x, const Tensor& index, const Tensor& member, const Numbers& cells,
                    const Numbers& number, const Tensor& window_slot, const OptionalTensor& neighbor,
                    const OptionalTensor& absorbs, const Tensor& absorber, const Tensor& absorber_slot, int64_t start,
                    bool mean);

}  // namespace tokendetr::merging
