// The functions of a Kernels table for one instruction set: from run-time types and widths to templates.
#pragma once

#include "../../common/cpu/simd.h"
#include "../../common/cpu/lanes.h"
#include "padded_values.h"
#include "samples.h"
#include "sources.h"
#include "forward.h"
#include "backward.h"

namespace tokendetr::TOKENDETR_ISA {

// Calls function with the number of vectors per head as a constant if kernels are compiled for it, else with 0.
template <class T, class Function>
TOKENDETR_INLINE void with_vectors(const Problem& problem, Function function) {
  const int64_t vectors = padded_width<T>(problem) / kLanes<T>;
  if constexpr (has_own_kernel<T>(1)) {
    if (vectors == 1) return function(std::integral_constant<int, 1>{});
  }
  if constexpr (has_own_kernel<T>(2)) {
    if (vectors == 2) return function(std::integral_constant<int, 2>{});
  }
  if constexpr (has_own_kernel<T>(4)) {
    if (vectors == 4) return function(std::integral_constant<int, 4>{});
  }
  function(std::integral_constant<int, 0>{});
}

inline LevelSet copied_levels(const Problem& problem, Storage storage, CopyRule rule) {
  return with_types(storage, [&](auto types) {
    using Use = decltype(types);
    const bool all = problem.width % kLanes<typename Use::T> != 0;
    const int64_t token_bytes = problem.heads * problem.width * static_cast<int64_t>(sizeof(typename Use::S));
    LevelSet copied = 0;
    for (int l = 0; l < problem.levels; ++l) {
      const double samples = static_cast<double>(problem.queries) * problem.points;
      const int64_t tokens = problem.level[l].height * problem.level[l].width;
      const double least = tokens * token_bytes <= kSmallLevel ? rule.small : rule.large;
      if (all || samples >= least * static_cast<double>(tokens)) copied |= LevelSet{1} << l;
    }
    return copied;
  });
}

inline int64_t padded_tokens(const Problem& problem, LevelSet copied) {
  int64_t starts[kMaxLevels];
  return padded_starts(problem, copied, starts);
}

inline int64_t padded_bytes(const Problem& problem, Storage storage, LevelSet copied) {
  return with_types(storage, [&](auto types) {
    using Use = decltype(types);
    return padded_tokens(problem, copied) * padded_width<typename Use::T>(problem) *
           static_cast<int64_t>(sizeof(typename Use::S));
  });
}

inline int64_t padded_gradient_bytes(const Problem& problem, Storage storage, LevelSet copied) {
  return with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    return padded_tokens(problem, copied) * padded_width<T>(problem) * static_cast<int64_t>(sizeof(T));
  });
}

inline void copy_padded(const Problem& problem, Storage storage, const void* value, int64_t image, int64_t head,
                        const Copies& copies) {
  with_types(storage, [&](auto types) {
    using Use = decltype(types);
    using T = typename Use::T;
    using S = typename Use::S;
    copy_padded_rows<T>(problem, static_cast<const S*>(value), image, head, copies.levels,
                        static_cast<S*>(copies.values));
  });
}

template <class T, class S, class Samples>
void forward_as(const Problem& problem, const Inputs& in, int64_t image, int64_t head, int64_t begin, int64_t end,
                const Copies& copies, void* output) {
  with_vectors<T>(problem, [&](auto vectors) {
    forward_queries<T, S, Samples, decltype(vectors)::value>(problem, in, image, head, begin, end, copies,
                                                             static_cast<S*>(output));
  });
}

inline void forward(const Problem& problem, Storage storage, const Inputs& in, int64_t image, int64_t head,
                    int64_t begin, int64_t end, const Copies& copies, void* output) {
  with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    using S = typename decltype(types)::S;
    const auto run = in.reference != nullptr ? forward_as<T, S, FusedSamples<T>> : forward_as<T, S, PlainSamples<T>>;
    run(problem, in, image, head, begin, end, copies, output);
  });
}

template <class T, class S, class Samples>
void backward_as(const Problem& problem, const Inputs& in, int64_t image, int64_t head, const Copies& copies,
                 const Gradients& gradient) {
  with_vectors<T>(problem, [&](auto vectors) {
    backward_queries<T, S, Samples, decltype(vectors)::value>(problem, in, image, head, copies, gradient);
  });
}

inline void backward(const Problem& problem, Storage storage, const Inputs& in, int64_t image, int64_t head,
                     const Copies& copies, const Gradients& gradient) {
  with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    using S = typename decltype(types)::S;
    const auto run = in.reference != nullptr ? backward_as<T, S, FusedSamples<T>> : backward_as<T, S, PlainSamples<T>>;
    std::memset(copies.gradient, 0, static_cast<size_t>(padded_gradient_bytes(problem, storage, copies.levels)));
    run(problem, in, image, head, copies, gradient);
    with_vectors<T>(problem, [&](auto vectors) {
      write_gradient<T, goes_by_twos<T, S>(decltype(vectors)::value)>(problem, static_cast<const T*>(copies.gradient),
                                                                      image, head, copies.levels, gradient.streams,
                                                                      static_cast<S*>(gradient.value));
    });
    finish_streams();
  });
}

}  // namespace tokendetr::TOKENDETR_ISA
