#pragma once

#include "samples.cuh"

namespace tokendetr::cuda {

// kGroup: lanes per query and head where known at compile time, else 0 and `lanes` says it.
template <class T, class S, int kVector, int kGroup, bool kFused>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const __grid_constant__ Problem problem, const Inputs in, S* output, int lanes) {
  const int group = kGroup > 0 ? kGroup : lanes;
  const int lane = static_cast<int>(threadIdx.x) % group;
  const int64_t units = problem.batch * problem.queries * problem.heads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / group);
  const int samples = problem.samples();
  const int64_t token_step = problem.heads * problem.width;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads / group) + threadIdx.x / group;
  // All lanes of a warp take part in every shuffle: groups past the end repeat the last unit and store nothing.
  const int64_t rounds = (units + step - 1) / step;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t index = first + round * step;
    const bool real = index < units;
    const Unit unit(problem, real ? index : units - 1);
    const Source<T, kFused> source(problem, in, unit, lane, group);
    const S* value = static_cast<const S*>(in.value) + unit.image * problem.tokens * token_step + unit.head * problem.width;
    for (int64_t chunk = 0; chunk < problem.width; chunk += group * kVector) {
      const int64_t channel = chunk + lane * kVector;
      const bool active = channel < problem.width;
      T sum[kVector] = {};
      for (int base = 0; base < samples; base += group) {
        Sample<T> own{0, 0, 0, 0, 0};
        if (base + lane < samples) own = source.at(base + lane);
        const int count = min(group, samples - base);
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          const int corners = from_lane(own.corners, j, group), token = from_lane(own.token, j, group);
          const T fx = from_lane(own.fx, j, group), fy = from_lane(own.fy, j, group);
          const T attention = from_lane(own.attention, j, group);
          const Level& level = problem.level[(base + j) / problem.points];
          const S* corner = value + (level.start + token) * token_step + channel;
          const int64_t row = level.width * token_step;
          T sampled[kVector] = {};
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (active && (corners >> c & 1)) {
              T pixel[kVector];
              load<T, S, kVector>(corner + (c & 1 ? token_step : 0) + (c & 2 ? row : 0), pixel);
              const T share = (c & 1 ? fx : T(1) - fx) * (c & 2 ? fy : T(1) - fy);
#pragma unroll
              for (int i = 0; i < kVector; ++i) sampled[i] += share * pixel[i];
            }
          }
#pragma unroll
          for (int i = 0; i < kVector; ++i) sum[i] += attention * sampled[i];
        }
      }
      if (active && real) {
        Pack<S, kVector> pack;
#pragma unroll
        for (int i = 0; i < kVector; ++i) pack.lane[i] = narrow<S, T>(sum[i]);
        *reinterpret_cast<Pack<S, kVector>*>(output + unit.row * problem.width + channel) = pack;
      }
    }
  }
}

}  // namespace tokendetr::cuda
