// The operators, as module.cpp declares them; tokendetr/ops/token_merging documents their arguments.
#pragma once

#include <tuple>

#include "../arguments.h"

namespace tokendetr::merging {

Tensor choose_windows(const Tensor& score, const Tensor& token, const Numbers& number, const Numbers& cells,
                      const Numbers& counts);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> match_tokens(
    const Tensor& cosine, const Tensor& order, const OptionalTensor& valid, const OptionalTensor& score,
    const Numbers& valid_counts, const Numbers& counts, int64_t neighbors, double min_cosine);

std::tuple<Tensor, Tensor, Tensor, Tensor> merged_order(const Tensor& valid, const Tensor& member, const Numbers& cells,
                                                        const Numbers& number, const OptionalTensor& important,
                                                        const OptionalTensor& absorber, const Numbers& absorber_counts,
                                                        int64_t length);

}  // namespace tokendetr::merging
