// Tensors that CPU kernels return.
#pragma once

#include "tensors.h"

namespace tokendetr {

// Not initialized, contiguous, on the CPU. Large ones take memory that earlier results of their size gave back: the
// system would have to clear fresh pages, which costs about as much as the kernels that write them. TOKENDETR_KEEP_MB
// in the environment bounds what waits to be used again, 128 by default; 0 keeps nothing. PyTorch does not resize the
// storage of such a tensor.
Tensor result_tensor(Sizes sizes, const Tensor& like, ScalarType type);

inline Tensor result_tensor(std::initializer_list<int64_t> sizes, const Tensor& like, ScalarType type) {
  return result_tensor(Sizes(sizes.begin(), sizes.size()), like, type);
}

}  // namespace tokendetr
