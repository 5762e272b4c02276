#include "arguments.h"

#include <algorithm>

namespace tokendetr::merging {

void check_tensor(std::string_view name, const Tensor& tensor, std::initializer_list<int64_t> shape, ScalarType type) {
  const Sizes sizes(shape.begin(), shape.size());
  TOKENDETR_CHECK_ARGUMENT(same_shape(tensor.sizes(), sizes), name, " must have shape ", Shown{sizes}, ", got ",
                           shape_of(tensor));
  TOKENDETR_CHECK_ARGUMENT(tensor.scalar_type() == type, name, " must be ", name_of(type), ", got ",
                           name_of(tensor.scalar_type()));
  TOKENDETR_CHECK_ARGUMENT(place_of(tensor).type == aoti_torch_device_type_cpu(), name, " must be on the CPU, got ",
                           place_of(tensor));
}

void check_indices(std::string_view name, const Tensor& tensor, int64_t end) {
  const int64_t* index = tensor.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    TOKENDETR_CHECK_ARGUMENT(index[i] >= 0 && index[i] < end, name, " must lie in [0, ", end, "), got ", index[i]);
  }
}

void check_counts(std::string_view name, const Numbers& counts, int64_t images, int64_t most) {
  TOKENDETR_CHECK_ARGUMENT(static_cast<int64_t>(counts.size()) == images, name, " needs a number for each of ", images,
                           " images, got ", counts.size());
  for (const int64_t count : counts) {
    TOKENDETR_CHECK_ARGUMENT(count >= 0 && count <= most, name, " must lie in [0, ", most, "], got ", count);
  }
}

}  // namespace tokendetr::merging
