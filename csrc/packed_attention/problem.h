// The sizes of one packed attention call, free of torch types: shared by the CPU and CUDA kernels.
#pragma once

#include <cstdint>

#include "../common/storage.h"

namespace tokendetr::packed {

// G containers of T slots, M heads, D channels per head. Logits and sums are double for float64, else float.
struct Problem {
  int64_t containers;
  int64_t slots;
  int64_t heads;
  int64_t width;
  double scale;
  int64_t reach;  // R of a bias table [M, 2R + 1, 2R + 1]

  int64_t side() const { return 2 * reach + 1; }
};

// A tensor [G, T, M, D] whose last dimension is dense; strides in elements.
template <class Pointer>
struct Strided {
  Pointer data;
  int64_t container;
  int64_t slot;
  int64_t head;
};
using Read = Strided<const void*>;
using Write = Strided<void*>;

struct Inputs {
  Read query, key, value;
  const int32_t* position;  // [G, T, 2] (y, x), or null
  const void* table;        // [M, 2R + 1, 2R + 1], type of the sums, or null
  const void* key_bias;     // [G, T], type of the sums, or null
};

}  // namespace tokendetr::packed
