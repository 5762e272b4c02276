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

inline bool reads_in_place(const Problem& problem, Storage storage) {
  return with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    return problem.width % kLanes<T> == 0;
  });
}

inline int64_t padded_tokens(const Problem& problem) {
  int64_t starts[kMaxLevels];
  return padded_starts(problem, starts);
}

inline int64_t padded_bytes(const Problem& problem, Storage storage) {
  return with_types(storage, [&](auto types) {
    using Use = decltype(types);
    return padded_tokens(problem) * padded_width<typename Use::T>(problem) *
           static_cast<int64_t>(sizeof(typename Use::S));
  });
}

inline int64_t padded_gradient_bytes(const Problem& problem, Storage storage) {
  return with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    return padded_tokens(problem) * padded_width<T>(problem) * static_cast<int64_t>(sizeof(T));
  });
}

inline void copy_padded(const Problem& problem, Storage storage, const void* value, int64_t image, int64_t head,
                        void* padded_values) {
  with_types(storage, [&](auto types) {
    using Use = decltype(types);
    using T = typename Use::T;
    using S = typename Use::S;
    const S* from = static_cast<const S*>(value);
    if constexpr (std::is_same_v<S, BFloat16>) {
      if (is_packed<T, S>(padded_width<T>(problem) / kLanes<T>)) {
        return copy_padded_rows<T, true>(problem, from, image, head, static_cast<S*>(padded_values));
      }
    }
    copy_padded_rows<T, false>(problem, from, image, head, static_cast<S*>(padded_values));
  });
}

template <class T, class S, bool kCopied, class Samples>
void forward_as(const Problem& problem, const Inputs& in, int64_t image, int64_t head, int64_t begin, int64_t end,
                const void* padded_values, void* output) {
  with_vectors<T>(problem, [&](auto vectors) {
    forward_queries<T, S, kCopied, Samples, decltype(vectors)::value>(
        problem, in, image, head, begin, end, static_cast<const S*>(padded_values), static_cast<S*>(output));
  });
}

inline void forward(const Problem& problem, Storage storage, const Inputs& in, int64_t image, int64_t head,
                    int64_t begin, int64_t end, const void* padded_values, void* output) {
  with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    using S = typename decltype(types)::S;
    const bool fused = in.reference != nullptr;
    auto run = fused ? forward_as<T, S, true, FusedSamples<T>> : forward_as<T, S, true, PlainSamples<T>>;
    if (padded_values == nullptr) {
      run = fused ? forward_as<T, S, false, FusedSamples<T>> : forward_as<T, S, false, PlainSamples<T>>;
    }
    run(problem, in, image, head, begin, end, padded_values, output);
  });
}

template <class T, class S, bool kCopied, class Samples>
void backward_as(const Problem& problem, const Inputs& in, int64_t image, int64_t head, int64_t begin, int64_t end,
                 const void* padded_values, void* padded_gradient, const Gradients& gradient) {
  with_vectors<T>(problem, [&](auto vectors) {
    backward_queries<T, S, kCopied, Samples, decltype(vectors)::value>(problem, in, image, head, begin, end,
                                                                       static_cast<const S*>(padded_values),
                                                                       static_cast<T*>(padded_gradient), gradient);
  });
}

// Gradients of half precision are summed in a padded float copy, so only float and double work in place.
inline void backward(const Problem& problem, Storage storage, const Inputs& in, int64_t image, int64_t head,
                     int64_t begin, int64_t end, const void* padded_values, void* padded_gradient,
                     const Gradients& gradient) {
  with_types(storage, [&](auto types) {
    using T = typename decltype(types)::T;
    using S = typename decltype(types)::S;
    const bool fused = in.reference != nullptr;
    auto run = fused ? backward_as<T, S, true, FusedSamples<T>> : backward_as<T, S, true, PlainSamples<T>>;
    if constexpr (sizeof(T) == sizeof(S)) {
      if (padded_values == nullptr) {
        run = fused ? backward_as<T, S, false, FusedSamples<T>> : backward_as<T, S, false, PlainSamples<T>>;
      }
    }
    if (padded_values != nullptr)
      std::memset(padded_gradient, 0, static_cast<size_t>(padded_gradient_bytes(problem, storage)));
    run(problem, in, image, head, begin, end, padded_values, padded_gradient, gradient);
    if (padded_values != nullptr) {
      write_gradient<T>(problem, static_cast<const T*>(padded_gradient), image, head, gradient.streams,
                        static_cast<S*>(gradient.value));
    }
    finish_streams();
  });
}

}  // namespace tokendetr::TOKENDETR_ISA
