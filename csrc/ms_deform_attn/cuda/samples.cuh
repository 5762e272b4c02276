// Device code that forward and backward share: vector loads, the sharing of samples within a group of lanes, locations.
//
// A group of lanes (4 to 32, a power of two) works on one query and head: each lane owns a vector of channels, and in
// turn each lane locates one sample for all of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels.h"

namespace tokendetr::cuda {

constexpr int kThreads = 256;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class S, class T>
__device__ __forceinline__ S narrow(T x) {
  return static_cast<S>(x);
}
template <>
__device__ __forceinline__ __half narrow<__half, float>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16, float>(float x) {
  return __float2bfloat16_rn(x);
}

template <class S, int kVector>
struct alignas(sizeof(S) * kVector) Pack {
  S lane[kVector];
};

template <class T, class S, int kVector>
__device__ __forceinline__ void load(const S* from, T* to) {
  const auto pack = *reinterpret_cast<const Pack<S, kVector>*>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) to[i] = widen(pack.lane[i]);
}

// One sample as its owner sees it; corner c = 2 * lower + right.
template <class T>
struct Sample {
  T fx, fy, attention;
  int token;    // of the upper left corner, relative to the level; may lie outside where `corners` says so
  int corners;  // bit c: corner c is a pixel of the level; 0: outside or not finite
};

template <class T>
__device__ __forceinline__ Sample<T> locate(const Level& level, T x, T y, T attention) {
  Sample<T> sample{0, 0, attention, 0, 0};
  const T width = static_cast<T>(level.width), height = static_cast<T>(level.height);
  if (x > T(-1) && x < width && y > T(-1) && y < height) {
    const T left = floor(x), top = floor(y);
    const int column = static_cast<int>(left), line = static_cast<int>(top);
    const int columns = static_cast<int>(level.width), lines = static_cast<int>(level.height);
    sample.fx = x - left;
    sample.fy = y - top;
    sample.token = line * columns + column;
    const int sides = (column >= 0 ? 1 : 0) | (column + 1 < columns ? 2 : 0);
    sample.corners = (line >= 0 ? sides : 0) | (line + 1 < lines ? sides << 2 : 0);
  }
  return sample;
}

template <class T>
__device__ __forceinline__ T from_lane(T x, int lane, int group) {
  return __shfl_sync(kAll, x, lane, group);
}
template <class T>
__device__ __forceinline__ T group_sum(T x, int group) {
  for (int distance = group / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAll, x, distance, group);
  return x;
}
template <class T>
__device__ __forceinline__ T group_largest(T x, int group) {
  for (int distance = group / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kAll, x, distance, group);
    x = x < other ? other : (other == other ? x : other);  // keeps a NaN
  }
  return x;
}

// What a group works on.
struct Unit {
  int64_t image, query, head;
  int64_t row;  // (image * Q + query) * M + head

  __device__ Unit(const Problem& problem, int64_t index)
      : image(index / (problem.queries * problem.heads)), query(index / problem.heads % problem.queries),
        head(index % problem.heads), row(index) {}
};

// The samples of one unit, from either form; lanes hand in the numbers of the samples they own.
template <class T, bool kFused>
class Source {
 public:
  __device__ Source(const Problem& problem, const Inputs& in, const Unit& unit, int lane, int group)
      : problem_(problem), locations_(static_cast<const T*>(in.locations) + 2 * unit.row * problem.samples()),
        weights_(static_cast<const T*>(in.weights) + unit.row * problem.samples()) {
    if constexpr (kFused) {
      boxes_ = in.reference_width == 4;
      reference_ = static_cast<const T*>(in.reference) +
                   (unit.image * problem.queries + unit.query) * problem.levels * in.reference_width;
      T largest = -INFINITY;
      for (int s = lane; s < problem.samples(); s += group) {
        const T logit = weights_[s];
        largest = largest < logit ? logit : (logit == logit ? largest : logit);
      }
      largest_ = group_largest(largest, group);
      T total = 0;
      for (int s = lane; s < problem.samples(); s += group) total += exp(weights_[s] - largest_);
      scale_ = T(1) / group_sum(total, group);
    }
  }

  __device__ T attention(int s) const {
    return kFused ? exp(weights_[s] - largest_) * scale_ : weights_[s];
  }

  __device__ Sample<T> at(int s) const {
    const int l = s / problem_.points;
    const Level& level = problem_.level[l];
    const T width = static_cast<T>(level.width), height = static_cast<T>(level.height);
    T x = locations_[2 * s], y = locations_[2 * s + 1];
    if constexpr (!kFused) {
      x = x * width - T(0.5);
      y = y * height - T(0.5);
    } else if (boxes_) {
      const T* box = reference_ + 4 * l;
      x = (box[0] + x * box[2] * half_per_point()) * width - T(0.5);
      y = (box[1] + y * box[3] * half_per_point()) * height - T(0.5);
    } else {
      x = reference_[2 * l] * width + x - T(0.5);
      y = reference_[2 * l + 1] * height + y - T(0.5);
    }
    return locate<T>(level, x, y, attention(s));
  }

  // From the gradient per pixel to that of the location or offset; of (x, y, w, h) of the reference into `to`.
  __device__ void chain(int s, T& x, T& y, T* to) const {
    const int l = s / problem_.points;
    const T per_x = x * static_cast<T>(problem_.level[l].width), per_y = y * static_cast<T>(problem_.level[l].height);
    to[0] = per_x;
    to[1] = per_y;
    to[2] = to[3] = 0;
    if constexpr (!kFused) {
      x = per_x;
      y = per_y;
    } else if (boxes_) {
      const T* box = reference_ + 4 * l;
      x = per_x * box[2] * half_per_point();
      y = per_y * box[3] * half_per_point();
      if (per_x != T(0)) to[2] = per_x * locations_[2 * s] * half_per_point();
      if (per_y != T(0)) to[3] = per_y * locations_[2 * s + 1] * half_per_point();
    }
  }

 private:
  __device__ T half_per_point() const { return T(0.5) / static_cast<T>(problem_.points); }

  const Problem& problem_;
  const T* locations_;
  const T* weights_;
  const T* reference_ = nullptr;
  bool boxes_ = false;
  T largest_ = 0, scale_ = 0;
};

}  // namespace tokendetr::cuda
