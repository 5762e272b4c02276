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
  void* value;         // [B, N, M, D], storage type; the caller has zeroed levels that are not copied
  void* locations;     // like Inputs::locations
  void* weights;       // like Inputs::weights
  void* reference;     // [M, B, Q, L, reference_width], one part per head, or null
  bool streams;        // write what is not read again past the caches
};

// Levels by number, one bit each.
using LevelSet = uint32_t;
static_assert(kMaxLevels <= 32);

inline bool has_level(LevelSet levels, int level) { return (levels >> level & 1) != 0; }

// A head's copies of levels, with a border of zeros (padded_values.h), 64-byte aligned. Other levels are read, and
// their gradients added, in place.
struct Copies {
  LevelSet levels;
  void* values;
  void* gradient;  // room for the gradient of the copies, in the type of the sums
};

// From these many samples per token of a level on, copying it pays.
struct CopyRule {
  double large;
  double small;  // levels of at most kSmallLevel bytes, which are soon in a cache anyway
};
constexpr int64_t kSmallLevel = int64_t{1} << 23;
constexpr CopyRule kForwardCopies{0.75, 2.5};
// The backward copies sooner: reading in place also means adding in place, to a gradient that was zeroed before.
constexpr CopyRule kBackwardCopies{0.5, 0.5};
constexpr CopyRule kCopyAll{0.0, 0.0};

// One instruction set's kernels. Each call works on one head of one image.
struct Kernels {
  const char* name;
  // The levels that a head samples often enough by the rule. All levels if a head's channels are no whole vectors,
  // which is when nothing can be read in place.
  LevelSet (*copied_levels)(const Problem&, Storage, CopyRule);
  int64_t (*padded_bytes)(const Problem&, Storage, LevelSet copied);
  int64_t (*padded_gradient_bytes)(const Problem&, Storage, LevelSet copied);
  void (*copy_padded)(const Problem&, Storage, const void* value, int64_t image, int64_t head, const Copies&);
  // Queries [begin, end).
  void (*forward)(const Problem&, Storage, const Inputs&, int64_t image, int64_t head, int64_t begin, int64_t end,
                  const Copies&, void* output);
  // All queries. In half precision all levels must be copied: gradients are added in the type of the sums.
  void (*backward)(const Problem&, Storage, const Inputs&, int64_t image, int64_t head, const Copies&,
                   const Gradients&);
};

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// The best set this processor runs; the environment variable TOKENDETR_CPU_ISA (avx512, avx2, portable) lowers it.
const Kernels& kernels();

}  // namespace tokendetr
