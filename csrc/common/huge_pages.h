// Huge pages for large fresh tensors: touching 4 KiB pages one by one would cost as much as the kernels.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace tokendetr {

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
