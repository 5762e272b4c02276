// Argument checks of token merging: every size, type and number that an index is made of is verified before a pointer
// is touched.
#pragma once

#include <string_view>
#include <vector>

#include "../common/tensors.h"

namespace tokendetr::merging {

using Numbers = std::vector<int64_t>;

void check_tensor(std::string_view name, const Tensor& tensor, std::initializer_list<int64_t> shape, ScalarType type);

// Indices in [0, end).
void check_indices(std::string_view name, const Tensor& tensor, int64_t end);

// One number in [0, most] for each image.
void check_counts(std::string_view name, const Numbers& counts, int64_t images, int64_t most);

}  // namespace tokendetr::merging
