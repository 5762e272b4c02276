// What the operators ask of tensors: their storage type, that of their sums, and huge pages.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "storage.h"

namespace tokendetr {

// Of a tensor that passed the argument checks.
inline Storage storage_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Storage::kFloat64;
    case at::kBFloat16:
      return Storage::kBFloat16;
    case at::kHalf:
      return Storage::kFloat16;
    default:
      return Storage::kFloat32;
  }
}

// The type of coordinates, weights, biases and sums: float64 for float64 values, else float32.
inline at::ScalarType sum_type(const at::Tensor& values) {
  return values.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Asks for huge pages for a large fresh tensor: touching 4 KiB pages one by one would cost as much as the kernels.
inline at::Tensor with_huge_pages(at::Tensor tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = (begin + tensor.nbytes()) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: may be refused
#endif
  return tensor;
}

}  // namespace tokendetr
