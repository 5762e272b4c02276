// The functions of a Kernels table for one instruction set: from run-time types to templates.
#pragma once

#include "../../common/cpu/simd.h"
#include "../../common/cpu/lanes.h"
#include "products.h"
#include "rows.h"
#include "keys.h"
#include "softmax.h"
#include "forward.h"
#include "backward.h"

namespace tokendetr::TOKENDETR_ISA::packed {

inline int64_t forward_bytes(const Problem& problem, Storage storage, int64_t longest) {
  return with_types(storage, [&](auto types) {
    return ForwardScratch<typename decltype(types)::T>(problem, longest, true, nullptr).carver.bytes();
  });
}

inline int64_t backward_bytes(const Problem& problem, Storage storage, int64_t longest) {
  return with_types(storage, [&](auto types) {
    return BackwardScratch<typename decltype(types)::T>(problem, longest, true, nullptr).carver.bytes();
  });
}

inline void forward(const Problem& problem, Storage storage, const Inputs& in, const Segments& segments,
                    int64_t container, const Heads& heads, void* memory, const Write& output) {
  with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    using S = typename decltype(types)::S;
    ForwardScratch<T> scratch(problem, segments.longest(), in.table != nullptr, memory);
    for (int64_t s = 0; s < segments.count; ++s) {
      const int32_t begin = segments.starts[s], count = segments.starts[s + 1] - begin;
      forward_segment<T, S>(problem, in, container, heads, segments.slots + begin, count, scratch, output);
    }
  });
}

inline void backward(const Problem& problem, Storage storage, const Inputs& in, const Segments& segments,
                     int64_t container, const Heads& heads, void* memory, const Gradients& gradients) {
  with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    using S = typename decltype(types)::S;
    BackwardScratch<T> scratch(problem, segments.longest(), in.table != nullptr, memory);
    for (int64_t s = 0; s < segments.count; ++s) {
      const int32_t begin = segments.starts[s], count = segments.starts[s + 1] - begin;
      backward_segment<T, S>(problem, in, container, heads, segments.slots + begin, count, scratch, gradients);
    }
  });
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
