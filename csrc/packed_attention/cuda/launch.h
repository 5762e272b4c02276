// Helpers of the functions that launch kernels.
#pragma once

#include "kernels.h"
#include "rows.h"

namespace tokendetr::packed::cuda {

constexpr int kWarpsPerBlock = 4;

// Each warp takes items kWarpsPerBlock * grid apart, so that any number of blocks does the work.
struct Items {
  int64_t first, step;
};
__device__ __forceinline__ Items items_of_warp() {
  return {static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp,
          static_cast<int64_t>(gridDim.x) * kWarpsPerBlock};
}

inline unsigned blocks_for(int64_t items) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t blocks = (items + kWarpsPerBlock - 1) / kWarpsPerBlock;
  return static_cast<unsigned>(blocks < kMost ? blocks : kMost);
}

// Arguments that all warps of a launch share.
struct Launch {
  Problem problem;
  Work work;
  Inputs in;
  const int32_t* segment;
};

}  // namespace tokendetr::packed::cuda
