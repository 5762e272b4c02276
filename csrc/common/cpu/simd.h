// Vectors of one instruction set: compiler vector extensions, so that one text serves AVX-512, AVX2 and the portable
// build (SSE2, NEON, ...). Included in a unit of an instruction set alone, after begin_<isa>.h.
#pragma once

#include "../storage.h"

#define TOKENDETR_INLINE inline __attribute__((always_inline))

namespace tokendetr::TOKENDETR_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr int kVectorBytes = TOKENDETR_VECTOR_BYTES;

// At least 4: portable vectors of doubles are two of the machine's.
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T)) < 4 ? 4 : kVectorBytes / static_cast<int>(sizeof(T));

template <class T, int kCount>
struct VectorType {
  typedef T Type __attribute__((vector_size(sizeof(T) * kCount)));
  typedef T Loose __attribute__((vector_size(sizeof(T) * kCount), aligned(alignof(T)), may_alias));
};

// A full vector of T (float or double), and the vectors with as many lanes of other types.
template <class T>
using Vec = typename VectorType<T, kLanes<T>>::Type;
template <class T, class U>
using Beside = typename VectorType<U, kLanes<T>>::Type;
template <class T>
using Index = Beside<T, int32_t>;
template <class T>
using Mask = decltype(Vec<T>{} < Vec<T>{});

template <class T, class U>
TOKENDETR_INLINE Beside<T, U> load_beside(const U* from) {
  return *reinterpret_cast<const typename VectorType<U, kLanes<T>>::Loose*>(from);
}
template <class T, class U>
TOKENDETR_INLINE void store_beside(U* to, Beside<T, U> vector) {
  *reinterpret_cast<typename VectorType<U, kLanes<T>>::Loose*>(to) = vector;
}

template <class T>
TOKENDETR_INLINE Vec<T> broadcast(T scalar) {
  return scalar - Vec<T>{};  // adding 0 would not be free: it turns -0 into 0
}

// Loads with widening to T, and stores with rounding to nearest even.
template <class T>
TOKENDETR_INLINE Vec<T> load(const T* from) {
  return load_beside<T, T>(from);
}
template <class T>
TOKENDETR_INLINE void store(T* to, Vec<T> vector) {
  store_beside<T, T>(to, vector);
}
// Writes past the caches; `to` is aligned to a vector.
template <class T>
TOKENDETR_INLINE void stream(T* to, Vec<T> vector) {
#if TOKENDETR_VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(vector));
#elif TOKENDETR_VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(vector));
#else
  store<T>(to, vector);
#endif
}
// Makes what was streamed visible to other threads.
TOKENDETR_INLINE void finish_streams() {
#if TOKENDETR_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}
// True if rows of `count` elements from `to` on can be streamed whole.
template <class T>
TOKENDETR_INLINE bool can_stream(const void* to, int64_t count) {
  return reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0 && count % kLanes<T> == 0;
}

template <class T>
TOKENDETR_INLINE Vec<T> load(const BFloat16* from) {
  const auto bits = load_beside<float, uint16_t>(&from->bits);
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(bits, Beside<float, uint32_t>) << 16);
}
template <class T>
TOKENDETR_INLINE void store(BFloat16* to, Vec<float> vector) {
#if defined(TOKENDETR_ROUNDS_BFLOAT16)
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(vector));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)rounded);
#else
  const auto bits = reinterpret_cast<Beside<float, uint32_t>>(vector);
  const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto quiet_nan = Beside<float, uint32_t>{} + 0x7fc0u;
  const auto kept = vector == vector ? rounded : quiet_nan;
  store_beside<float, uint16_t>(&to->bits, __builtin_convertvector(kept, Beside<float, uint16_t>));
#endif
}

// The channels of two vectors of bfloat16 by twos: those of even numbers and those of odd ones. They lie in the halves
// of 32-bit numbers, so that both take one load and two bit operations.
template <class T>
TOKENDETR_INLINE void load_by_twos(const BFloat16* from, Vec<T>* two) {
  const auto bits = load_beside<T, uint32_t>(reinterpret_cast<const uint32_t*>(from));
  two[0] = reinterpret_cast<Vec<T>>(bits << 16);
  two[1] = reinterpret_cast<Vec<T>>(bits & 0xffff0000u);
}

TOKENDETR_INLINE float widen(Float16 half) {
  const uint32_t sign = static_cast<uint32_t>(half.bits & 0x8000u) << 16;
  const uint32_t magnitude = half.bits & 0x7fffu;
  uint32_t bits = magnitude << 13;
  if (magnitude >= 0x7c00u) {
    bits |= 0x7f800000u;
  } else if (magnitude >= 0x0400u) {
    bits += 0x38000000u;
  } else {
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &small, sizeof(bits));
  }
  bits |= sign;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

TOKENDETR_INLINE Float16 narrow(float scalar) {
  uint32_t bits;
  std::memcpy(&bits, &scalar, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u;
  } else if (bits >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (bits >= 0x38800000u) {
    half = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  } else {
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;  // the sum's last place is that of a subnormal half: the addition rounds to it
    std::memcpy(&half, &magnitude, sizeof(half));
    half -= 0x3f000000u;
  }
  return Float16{static_cast<uint16_t>(half | sign)};
}

template <class T>
TOKENDETR_INLINE Vec<T> load(const Float16* from) {
#if TOKENDETR_VECTOR_BYTES == 64
  return reinterpret_cast<Vec<float>>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif TOKENDETR_VECTOR_BYTES == 32
  return reinterpret_cast<Vec<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Vec<float> result;
  for (int lane = 0; lane < kLanes<float>; ++lane) result[lane] = widen(from[lane]);
  return result;
#endif
}
template <class T>
TOKENDETR_INLINE void store(Float16* to, Vec<float> vector) {
#if TOKENDETR_VECTOR_BYTES == 64
  const __m256i half = _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(vector), 0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
#elif TOKENDETR_VECTOR_BYTES == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(reinterpret_cast<__m256>(vector), 0));
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) to[lane] = narrow(vector[lane]);
#endif
}

// Loads the first `count` lanes, the others are 0; a full vector is loaded at once.
template <class T, class S>
TOKENDETR_INLINE Vec<T> load_some(const S* from, int64_t count) {
  if (count >= kLanes<T>) return load<T>(from);
  S few[kLanes<T>] = {};
  std::memcpy(few, from, static_cast<size_t>(count) * sizeof(S));
  return load<T>(few);
}
template <class T, class S>
TOKENDETR_INLINE void store_some(S* to, Vec<T> vector, int64_t count) {
  if (count >= kLanes<T>) return store<T>(to, vector);
  S few[kLanes<T>];
  store<T>(few, vector);
  std::memcpy(to, few, static_cast<size_t>(count) * sizeof(S));
}

TOKENDETR_INLINE Vec<float> floor_small(Vec<float> x) {  // |x| < 2^31
  const auto cut = __builtin_convertvector(__builtin_convertvector(x, Index<float>), Vec<float>);
  return cut > x ? cut - 1.0f : cut;
}
TOKENDETR_INLINE Vec<double> floor_small(Vec<double> x) {
  const auto cut = __builtin_convertvector(__builtin_convertvector(x, Index<double>), Vec<double>);
  return cut > x ? cut - 1.0 : cut;
}

// e^x for x <= 0 to within 2 units in the last place; results under 2^-126 are 0, NaN stays NaN.
TOKENDETR_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  constexpr float kMagic = 0x1.8p23f + 127;  // its sum with a whole number has the bits of 2^number at its end
  const Vec<float> least = broadcast<float>(-87.3f);
  const Vec<float> t = least > x ? least : x;
  const Vec<float> shifted = t * 1.44269504f + kMagic;
  const Vec<float> whole = shifted - kMagic;
  const Vec<float> r = t - whole * 0x1.62e4p-1f - whole * 0x1.7f7d1cp-20f;
  // In pairs of terms: the next vectors need not wait for a long chain.
  const Vec<float> square = r * r;
  Vec<float> p = (r * 1.9875691500e-4f + 1.3981999507e-3f) * square + (r * 8.3334519073e-3f + 4.1665795894e-2f);
  p = p * square + (r * 1.6666665459e-1f + 5.0000001201e-1f);
  p = p * square + r + 1.0f;
  const Vec<float> result = p * reinterpret_cast<Vec<float>>(reinterpret_cast<Index<float>>(shifted) << 23);
  return x < least ? Vec<float>{} : result;
}
TOKENDETR_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = __builtin_exp(x[lane]);
  return x;
}

template <class Accumulate, class Store>
struct Types {
  using T = Accumulate;  // coordinates and sums
  using S = Store;       // values, outputs and their gradients
};

// Calls function with the types that a storage type stands for.
template <class Function>
TOKENDETR_INLINE auto with_types(Storage storage, Function function) {
  switch (storage) {
    case Storage::kFloat64:
      return function(Types<double, double>{});
    case Storage::kBFloat16:
      return function(Types<float, BFloat16>{});
    case Storage::kFloat16:
      return function(Types<float, Float16>{});
    default:
      return function(Types<float, float>{});
  }
}

}  // namespace tokendetr::TOKENDETR_ISA
