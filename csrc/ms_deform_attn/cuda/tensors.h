// Inputs and outputs of the CUDA kernels, free of torch and CUDA types.
#pragma once

#include "../../common/storage.h"
#include "../problem.h"

namespace tokendetr::cuda {

// As on the CPU: coordinates are double for float64 values and float otherwise. Tensors are contiguous and their first
// element is aligned to 16 bytes.
struct Inputs {
  const void* value;      // [B, N, M, D], storage type
  const void* locations;  // [B, Q, M, L, P, 2]: locations, or offsets in the fused form
  const void* weights;    // [B, Q, M, L, P]: weights, or logits in the fused form
  const void* reference;  // [B, Q, L, reference_width] in the fused form, else null
  int reference_width;    // 2 or 4
};

// Record of each sample that the deterministic backward writes, for `collect` to sort and sum.
struct Notes {
  int32_t* cells;  // [B, Q, M, L, P]: cell of its upper left corner, see cells_per_head()
  void* shares;    // [B, Q, M, L, P, 3]: fractions in x and y, attention weight; coordinate type
};

struct Gradients {
  const void* output;  // [B, Q, M * D], storage type: the incoming gradient
  void* value;         // [B, N, M, D], zeroed, coordinate type, added to in any order; null if `notes` are written
  void* locations;     // like Inputs::locations
  void* weights;       // like Inputs::weights
  void* reference;     // [M, B, Q, L, reference_width], zeroed, one part per head; or null
  Notes notes;         // null, or what the deterministic backward needs
};

// One image's samples in the order of their cells; samples of one cell keep their order.
struct SortedSamples {
  int64_t image;
  const int64_t* sample;      // [Q * M * L * P]: number of the sample in its image
  const int64_t* cell_start;  // [M * cells_per_head + 1]: position of a cell's first sample
};

}  // namespace tokendetr::cuda
