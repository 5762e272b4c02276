// What a set of CPU kernels (one per instruction set) offers, and the choice between the sets.
#pragma once

#include "../../common/storage.h"
#include "../problem.h"

namespace tokendetr {

// Where a head's samples come from. Plain: locations and weights. Fused: reference points, raw offsets and logits.
// All coordinates are double for float64 values and float otherwise; tensors are contiguous.
struct Inputs {
  const void* value;      // [B, N, M, D], storage type
  const void* locations;  // [B, Q, M, L, P, 2]: locations, or offsets in the fused form
  const void* weights;    // [B, Q, M, L, P]: weights, or logits in the fused form
  const void* reference;  // [B, Q, L, reference_width] in the fused form, else null
  int reference_width;    // 2 or 4
};

struct Gradients {
  const void* output;  // [B, Q, M * D], storage type: the incoming gradient
  void* value;         // [B, N, M, D], storage type; zeroed by the caller where `in_place` is asked for
  void* locations;     // like Inputs::locations
  void* weights;       // like Inputs::weights
  void* reference;     // [M, B, Q, L, reference_width], one part per head, or null
  bool streams;        // write what is not read again past the caches
};

// One instruction set's kernels. Each call works on one head of one image. `padded_values` is a head-major copy of the
// values with a border of zeros (padded_values.h), 64-byte aligned; if it is null, samples are read in place.
struct Kernels {
  const char* name;
  bool (*reads_in_place)(const Problem&, Storage);
  int64_t (*padded_bytes)(const Problem&, Storage);
  int64_t (*padded_gradient_bytes)(const Problem&, Storage);
  void (*copy_padded)(const Problem&, Storage, const void* value, int64_t image, int64_t head, void* padded_values);
  // Queries [begin, end).
  void (*forward)(const Problem&, Storage, const Inputs&, int64_t image, int64_t head, int64_t begin, int64_t end,
                  const void* padded_values, void* output);
  // Queries [begin, end). In place, gradients are added to `gradient.value`, which the caller has zeroed; with padded
  // copies the value gradient is written, not added, so all queries must go in one call.
  void (*backward)(const Problem&, Storage, const Inputs&, int64_t image, int64_t head, int64_t begin, int64_t end,
                   const void* padded_values, void* padded_gradient, const Gradients& gradient);
};

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// The best set this processor runs; the environment variable TOKENDETR_CPU_ISA (avx512, avx2, portable) lowers it.
const Kernels& kernels();

}  // namespace tokendetr
