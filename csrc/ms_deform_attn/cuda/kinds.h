// The kernels that are compiled: storage type, and how a group of lanes covers the channels of a head.
#pragma once

#include <type_traits>

#include "samples.h"

namespace tokendetr::cuda {

// A group of kLanes lanes works on one query and head; a lane owns kVector neighboring channels, kChunks times in a
// forward pass over the samples. kUsual: heads of 32 channels with 4 levels of 4 points, known at compile time.
template <class Accumulate, class Store, int kLanes_, int kVector_, int kChunks_, bool kUsual_>
struct Kind {
  using T = Accumulate;  // coordinates and sums
  using S = Store;       // values, outputs and their gradients
  static constexpr int kLanes = kLanes_, kVector = kVector_, kChunks = kChunks_;
  static constexpr bool kUsual = kUsual_;
  static constexpr int kPoints = kUsual ? 4 : 0;
  static constexpr int kSamples = kUsual ? 16 : 0;
  static constexpr int kGroups = kWarp / kLanes;
  // The groups' entries lie in different banks of the shared memory.
  static constexpr int kGroupBytes = kLanes * static_cast<int>(sizeof(Entry<T>)) + 16;
  static constexpr int kWarpBytes = kGroups * kGroupBytes;
};

using DoubleKind = Kind<double, double, 8, 1, 2, false>;
template <class S, int kVector>  // 16 bytes
using UsualKind = Kind<float, S, 32 / kVector, kVector, 1, true>;
template <class S, int kVector>
using VectorKind = Kind<float, S, 32 / kVector, kVector, 2, false>;
template <class S>
using ScalarKind = Kind<float, S, 8, 1, 4, false>;

// Calls function with the kind of kernel for a problem.
template <class Function>
auto with_kind(const Problem& problem, Storage storage, Function function) {
  const auto of_float = [&](auto stored, auto elements) {
    using S = decltype(stored);
    constexpr int kVector = decltype(elements)::value;
    if (problem.width == 32 && problem.levels == 4 && problem.points == 4) return function(UsualKind<S, kVector>{});
    return problem.width % kVector == 0 ? function(VectorKind<S, kVector>{}) : function(ScalarKind<S>{});
  };
  switch (storage) {
    case Storage::kFloat64:
      return function(DoubleKind{});
    case Storage::kBFloat16:
      return of_float(BFloat{}, std::integral_constant<int, 8>{});
    case Storage::kFloat16:
      return of_float(Half{}, std::integral_constant<int, 8>{});
    default:
      return of_float(float{}, std::integral_constant<int, 4>{});
  }
}

// Where the lanes of a group exchange their samples.
template <class K>
TOKENDETR_DEVICE Entry<typename K::T>* entries_of_group(char* warp_memory, int group) {
  return reinterpret_cast<Entry<typename K::T>*>(warp_memory + group * K::kGroupBytes);
}

}  // namespace tokendetr::cuda
