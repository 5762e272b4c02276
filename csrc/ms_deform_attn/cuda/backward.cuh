#pragma once

#include "samples.cuh"

namespace tokendetr::cuda {

// Adds a vector to the value gradient: four floats in one reduction where the processor has it.
template <class T, int kVector>
__device__ __forceinline__ void add(T* to, const T* vector) {
#if __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == sizeof(float) && kVector % 4 == 0) {
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

template <int kVector, class T>
__device__ __forceinline__ void add_fixed(long long* to, const T* vector, double scale) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const long long number = __double2ll_rn(static_cast<double>(vector[i]) * scale);
    atomicAdd(reinterpret_cast<unsigned long long*>(to + i), static_cast<unsigned long long>(number));
  }
}

template <class T, class S, int kVector, int kGroup, bool kFused>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const __grid_constant__ Problem problem, const Inputs in, const Gradients gradient, int lanes) {
  const int group = kGroup > 0 ? kGroup : lanes;
  const int lane = static_cast<int>(threadIdx.x) % group;
  const int64_t units = problem.batch * problem.queries * problem.heads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / group);
  const int samples = problem.samples();
  const int64_t token_step = problem.heads * problem.width;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads / group) + threadIdx.x / group;
  const int64_t rounds = (units + step - 1) / step;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t index = first + round * step;
    const bool real = index < units;  // groups past the end take part in shuffles alone
    const Unit unit(problem, real ? index : units - 1);
    const Source<T, kFused> source(problem, in, unit, lane, group);
    const int64_t start = unit.image * problem.tokens * token_step + unit.head * problem.width;
    const S* incoming = static_cast<const S*>(gradient.output) + unit.row * problem.width;
    T* to_location = static_cast<T*>(gradient.locations) + 2 * unit.row * samples;
    T* to_weight = static_cast<T*>(gradient.weights) + unit.row * samples;
    T softmax_total = 0;
    for (int base = 0; base < samples; base += group) {
      Sample<T> own{0, 0, 0, 0, 0};
      if (base + lane < samples) own = source.at(base + lane);
      const int count = min(group, samples - base);
      T own_dot[4] = {};
      for (int j = 0; j < count; ++j) {
        const int corners = from_lane(own.corners, j, group), token = from_lane(own.token, j, group);
        const T fx = from_lane(own.fx, j, group), fy = from_lane(own.fy, j, group);
        const T attention = from_lane(own.attention, j, group);
        const Level& level = problem.level[(base + j) / problem.points];
        const int64_t row = level.width * token_step;
        T dot[4] = {};
        for (int64_t channel = lane * kVector; channel < problem.width; channel += group * kVector) {
          T g[kVector];
          load<T, S, kVector>(incoming + channel, g);
          const int64_t corner = start + (level.start + token) * token_step + channel;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (corners >> c & 1) {
              const int64_t at = corner + (c & 1 ? token_step : 0) + (c & 2 ? row : 0);
              T pixel[kVector];
              load<T, S, kVector>(static_cast<const S*>(in.value) + at, pixel);
              const T share = (c & 1 ? fx : T(1) - fx) * (c & 2 ? fy : T(1) - fy) * attention;
#pragma unroll
              for (int i = 0; i < kVector; ++i) {
                dot[c] += pixel[i] * g[i];
                pixel[i] = share * g[i];
              }
              if (real) {
                if (gradient.fixed_value != nullptr) {
                  add_fixed<kVector>(gradient.fixed_value + at, pixel, gradient.fixed_scale);
                } else {
                  add<T, kVector>(static_cast<T*>(gradient.value) + at, pixel);
                }
              }
            }
          }
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const T total = group_sum(dot[c], group);
          if (lane == j) own_dot[c] = total;
        }
      }
      const T gx = T(1) - own.fx, gy = T(1) - own.fy;
      T along_x = 0, along_y = 0, to_reference[4] = {};
      if (own.corners != 0) {
        along_x = (gy * (own_dot[1] - own_dot[0]) + own.fy * (own_dot[3] - own_dot[2])) * own.attention;
        along_y = (gx * (own_dot[2] - own_dot[0]) + own.fx * (own_dot[3] - own_dot[1])) * own.attention;
      }
      const T sampled = gy * (gx * own_dot[0] + own.fx * own_dot[1]) + own.fy * (gx * own_dot[2] + own.fx * own_dot[3]);
      if (base + lane < samples) {
        source.chain(base + lane, along_x, along_y, to_reference);
        if (real) {
          to_location[2 * (base + lane)] = along_x;
          to_location[2 * (base + lane) + 1] = along_y;
          to_weight[base + lane] = sampled;
        }
        softmax_total += own.attention * sampled;
      }
      if (kFused && gradient.reference != nullptr) {
        const int width = in.reference_width;
        T* part = static_cast<T*>(gradient.reference) +
                  ((unit.head * problem.batch + unit.image) * problem.queries + unit.query) * problem.levels * width;
        for (int j = 0; j < count; ++j) {
          for (int k = 0; k < width; ++k) {
            const T share = from_lane(to_reference[k], j, group);
            if (lane == 0 && real) part[(base + j) / problem.points * width + k] += share;
          }
        }
      }
    }
    if constexpr (kFused) {
      softmax_total = group_sum(softmax_total, group);
      for (int s = lane; s < samples && real; s += group) {
        to_weight[s] = source.attention(s) * (to_weight[s] - softmax_total);
      }
    }
  }
}

}  // namespace tokendetr::cuda
