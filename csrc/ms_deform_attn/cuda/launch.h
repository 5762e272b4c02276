// Helpers of the functions that launch kernels.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "kinds.h"

namespace tokendetr::cuda {

__device__ __forceinline__ Thread this_thread() {
  return {static_cast<int>(threadIdx.x % kWarp), static_cast<int>(threadIdx.x / kWarp),
          static_cast<int>(blockDim.x / kWarp), blockIdx.x, gridDim.x};
}

// One persistent block per multiprocessor, fewer if there is less work than a warp for each.
inline unsigned blocks_for(int64_t warps_of_work, const Launch& launch) {
  return static_cast<unsigned>(std::clamp<int64_t>(warps_of_work, 1, launch.multiprocessors));
}

}  // namespace tokendetr::cuda
