// What the operators ask of tensors: sizes and types for messages, storage type, conversions, fresh memory.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <vector>

#include "check.h"
#include "stable_abi.h"
#include "storage.h"

namespace tokendetr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// A list of numbers in a message.
struct Shown {
  Sizes numbers;
};
inline std::ostream& operator<<(std::ostream& out, const Shown& list) {
  out << '[';
  for (size_t i = 0; i < list.numbers.size(); ++i) out << (i == 0 ? "" : ", ") << list.numbers[i];
  return out << ']';
}
inline Shown shape_of(const Tensor& tensor) { return {tensor.sizes()}; }

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(type);
  }
}

// As device() it would refuse devices that the stable ABI has no name for.
struct Place {
  int32_t type, index;
  bool operator==(const Place& other) const { return type == other.type && index == other.index; }
};
inline Place place_of(const Tensor& tensor) {
  Place place{};
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &place.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &place.index));
  return place;
}
inline std::ostream& operator<<(std::ostream& out, const Place& place) {
  const bool cpu = place.type == aoti_torch_device_type_cpu(), cuda = place.type == aoti_torch_device_type_cuda();
  if (cpu) return out << "cpu";
  return out << (cuda ? "cuda:" : "another kind of device, number ") << place.index;
}

inline bool same_shape(Sizes a, Sizes b) {
  bool same = a.size() == b.size();
  for (size_t i = 0; same && i < a.size(); ++i) same = a[i] == b[i];
  return same;
}

inline bool is_float(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// Of a tensor that passed the argument checks.
inline Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Storage::kFloat64;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    default:
      return Storage::kFloat32;
  }
}

// The type of coordinates, weights, biases and sums: float64 for float64 values, else float32.
inline ScalarType sum_type(const Tensor& values) {
  return values.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline size_t bytes_of(const Tensor& tensor) { return tensor.numel() * tensor.element_size(); }

// A tensor, which the call leaves alone, in a type: itself if it has it.
inline Tensor in_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline OptionalTensor dense(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(dense(*tensor)) : std::nullopt;
}

inline bool is_aligned(const Tensor& tensor, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

// Of a contiguous tensor.
struct Strides {
  static constexpr size_t kMostAxes = 8;
  std::array<int64_t, kMostAxes> stride{};
  int64_t numbers = 1;  // elements; an empty axis counts as one

  explicit Strides(Sizes sizes) {
    TOKENDETR_CHECK(sizes.size() <= kMostAxes, "a tensor of ", sizes.size(), " axes");
    for (size_t i = sizes.size(); i-- > 0;) {
      stride[i] = numbers;
      numbers *= sizes[i] > 1 ? sizes[i] : 1;
    }
  }
};

inline int32_t number_of(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

// Not initialized, contiguous, on the device of `like`.
inline Tensor empty_tensor(Sizes sizes, const Tensor& like, ScalarType type) {
  const Strides strides(sizes);
  const Place place = place_of(like);
  AtenTensorHandle made = nullptr;
  // The stable ABI says that it failed and not why; callers look for these words of PyTorch's own error.
  TOKENDETR_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.stride.data(),
                                           number_of(type), place.type, place.index, &made) == TORCH_SUCCESS,
                  like.is_cuda() ? "CUDA out of memory. " : "not enough memory: ", "Tried to allocate a ",
                  name_of(type), " tensor of shape ", Shown{sizes}, " on ", place);
  return Tensor(made);
}
inline Tensor empty_tensor(std::initializer_list<int64_t> sizes, const Tensor& like, ScalarType type) {
  return empty_tensor(Sizes(sizes.begin(), sizes.size()), like, type);
}

inline Tensor zeros_tensor(std::initializer_list<int64_t> sizes, const Tensor& like, ScalarType type) {
  Tensor made = empty_tensor(sizes, like, type);
  return torch::stable::zero_(made);
}

// Sums over one axis, in a type.
inline Tensor summed(const Tensor& tensor, int64_t axis, ScalarType type) {
  const std::array<int64_t, 1> axes{axis};
  return in_type(torch::stable::sum(tensor, Sizes(axes.data(), axes.size())), type);
}

}  // namespace tokendetr
