// The kernels' access to the GPU: vector loads and stores, conversions, shuffles, reductions into memory.
//
// Kernel code uses nothing else that is specific to a GPU, so that the tests can run it on a CPU: they name a header
// with the same functions in TOKENDETR_EMULATED_DEVICE.
#pragma once

#include <cstdint>
#include <cstring>

namespace tokendetr::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// A thread's place: lane of a warp, warp of a block, block of the grid.
struct Thread {
  int lane, warp, warps;
  int64_t block, blocks;
};

template <class S, int kVector>
struct alignas(sizeof(S) * kVector) Packed {
  S channel[kVector];
};

}  // namespace tokendetr::cuda

#ifdef TOKENDETR_EMULATED_DEVICE
#include TOKENDETR_EMULATED_DEVICE
#else

#define TOKENDETR_DEVICE __device__ __forceinline__

namespace tokendetr::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Every lane of the warp takes part.
template <class T>
TOKENDETR_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(kWholeWarp, x, mask);
}
TOKENDETR_DEVICE void sync_warp() { __syncwarp(); }

TOKENDETR_DEVICE float exponential(float x) { return expf(x); }
TOKENDETR_DEVICE double exponential(double x) { return exp(x); }
TOKENDETR_DEVICE float round_down(float x) { return floorf(x); }
TOKENDETR_DEVICE double round_down(double x) { return floor(x); }

template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// Loads memory that no thread writes during the kernel, in one access of at most 16 bytes.
template <int kVector, class S>
TOKENDETR_DEVICE Packed<S, kVector> load(const S* from) {
  const auto word = __ldg(reinterpret_cast<const typename Word<sizeof(S) * kVector>::type*>(from));
  Packed<S, kVector> packed;
  memcpy(&packed, &word, sizeof(word));
  return packed;
}

template <int kVector, class S>
TOKENDETR_DEVICE void store_packed(S* to, const Packed<S, kVector>& packed) {
  typename Word<sizeof(S) * kVector>::type word;
  memcpy(&word, &packed, sizeof(word));
  *reinterpret_cast<decltype(word)*>(to) = word;
}

TOKENDETR_DEVICE void widen_pair(const Half* pair, float* to) {
  uint32_t bits;
  memcpy(&bits, pair, sizeof(bits));
  asm("{\n .reg .b16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;\n}"
      : "=f"(to[0]), "=f"(to[1])
      : "r"(bits));
}
TOKENDETR_DEVICE void widen_pair(const BFloat* pair, float* to) {
  uint32_t bits;
  memcpy(&bits, pair, sizeof(bits));
  to[0] = __uint_as_float(bits << 16);
  to[1] = __uint_as_float(bits & 0xffff0000u);
}
TOKENDETR_DEVICE float widen(float x) { return x; }
TOKENDETR_DEVICE double widen(double x) { return x; }
TOKENDETR_DEVICE float widen(BFloat x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
TOKENDETR_DEVICE float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

TOKENDETR_DEVICE void narrow(float x, float& to) { to = x; }
TOKENDETR_DEVICE void narrow(double x, double& to) { to = x; }
TOKENDETR_DEVICE void narrow(float x, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
TOKENDETR_DEVICE void narrow(float x, BFloat& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

// Adds to memory that other threads add to: four floats at once if the GPU can.
template <int kVector>
TOKENDETR_DEVICE void add(float* to, const float (&vector)[kVector]) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kVector % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                   :
                   : "l"(__cvta_generic_to_global(to + i)), "f"(vector[i]), "f"(vector[i + 1]), "f"(vector[i + 2]),
                     "f"(vector[i + 3])
                   : "memory");
    }
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < kVector; ++i) atomicAdd(to + i, vector[i]);
}
template <int kVector>
TOKENDETR_DEVICE void add(double* to, const double (&vector)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) atomicAdd(to + i, vector[i]);
}

}  // namespace tokendetr::cuda

#endif

namespace tokendetr::cuda {

template <class T, class S, int kVector>
TOKENDETR_DEVICE void widen_all(const Packed<S, kVector>& packed, T (&to)[kVector]) {
  if constexpr (sizeof(S) == 2 && kVector % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kVector; i += 2) widen_pair(packed.channel + i, to + i);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] = widen(packed.channel[i]);
  }
}

template <class T, class S, int kVector>
TOKENDETR_DEVICE void store(S* to, const T (&vector)[kVector]) {
  Packed<S, kVector> packed;
#pragma unroll
  for (int i = 0; i < kVector; ++i) narrow(vector[i], packed.channel[i]);
  store_packed(to, packed);
}

// Sums and maxima over kLanes neighboring lanes, the same bits in each of them.
template <int kLanes, class T>
TOKENDETR_DEVICE T sum_over_lanes(T x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) x += shuffle_xor(x, distance);
  return x;
}
template <int kLanes, class T>
TOKENDETR_DEVICE T largest_of_lanes(T x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const T other = shuffle_xor(x, distance);
    x = x < other ? other : x;
  }
  return x;
}

// Every lane of a group makes kCount numbers for each of kLanes samples with make(sample, numbers); lane i receives all
// lanes' sums for sample i. Half the samples change lanes in each step: kLanes sums take kLanes - 1 shuffles, and only
// a few numbers are alive at a time. kStep is for the recursion: what is made are the samples sample, sample + kStep,
// ...
template <int kLanes, int kStep, int kCount, class T, class Make>
TOKENDETR_DEVICE void sum_of_each(int lane, int sample, const Make& make, T (&sums)[kCount]) {
  if constexpr (kStep == kLanes) {
    make(sample, sums);
  } else {
    T first[kCount], second[kCount];
    sum_of_each<kLanes, 2 * kStep>(lane, sample, make, first);
    sum_of_each<kLanes, 2 * kStep>(lane, sample + kStep, make, second);
    const bool keeps_second = (lane & kStep) != 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const T sent = keeps_second ? first[k] : second[k], kept = keeps_second ? second[k] : first[k];
      sums[k] = kept + shuffle_xor(sent, kStep);
    }
  }
}

}  // namespace tokendetr::cuda
