// The functions of a set of CPU kernels (one per instruction set), and the choice between the sets.
#pragma once

#include "../problem.h"

namespace tokendetr::packed {

// The slots of one container, those of a segment together; padding is left out.
struct Segments {
  const int32_t* slots;
  const int32_t* starts;  // of each segment in `slots`, and the end of the last
  int64_t count;

  int64_t longest() const {
    int64_t longest = 0;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t own = starts[s + 1] - starts[s];
      if (own > longest) longest = own;
    }
    return longest;
  }
};

// Heads [first, end).
struct Heads {
  int64_t first;
  int64_t end;
};

struct Gradients {
  Read output;              // the incoming gradient
  Write query, key, value;  // padding is left alone
  void* table;              // [M, 2R + 1, 2R + 1], added to, or null
  void* key_bias;           // [G, M, T], padding is left alone, or null
};

// The kernels work on some heads of one container. `scratch` is 64-byte aligned and as large as *_bytes() says for the
// longest segment.
struct Kernels {
  int64_t (*forward_bytes)(const Problem&, Storage, int64_t longest);
  int64_t (*backward_bytes)(const Problem&, Storage, int64_t longest);
  void (*forward)(const Problem&, Storage, const Inputs&, const Segments&, int64_t container, const Heads&,
                  void* scratch, const Write& output);
  void (*backward)(const Problem&, Storage, const Inputs&, const Segments&, int64_t container, const Heads&,
                   void* scratch, const Gradients&);
};

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<avx512bf16intrin.h>)
#define TOKENDETR_PAIRS 1
extern const Kernels kAvx512Bf16Kernels;
#endif
#if __has_include(<amxbf16intrin.h>)
#define TOKENDETR_TILES 1
extern const Kernels kAmxKernels;
#endif
#endif

// Those of the best instruction set, see common/isa.h.
const Kernels& kernels();

}  // namespace tokendetr::packed
