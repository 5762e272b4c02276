// The CUDA kernels' host interface, free of torch types. What they launch is checked: they return the launch's error,
// which the caller must raise.
#pragma once

#include <cuda_runtime_api.h>

#include "tensors.h"
#include "work.h"

namespace tokendetr::packed::cuda {

// The largest head width that the kernels take.
inline int64_t widest(Storage storage) { return kWarp * channels_per_lane(storage); }

// Loads are `load_bytes()` wide: addresses and strides of all tensors must be multiples of it.
inline int64_t load_bytes(const Problem& problem, Storage storage) {
  if (storage == Storage::kFloat64) return 8;
  const int64_t element = storage == Storage::kFloat32 ? 4 : 2;
  return problem.width * element % 16 == 0 ? 16 : element;
}

// segment: [G, T], contiguous.
cudaError_t forward(const Problem&, Storage, const Inputs&, const int32_t* segment, const Write& output, cudaStream_t);
// Of queries, then of keys. The parts of the table gradient are as many as work_of(..., true).parts().
cudaError_t backward(const Problem&, Storage, const Inputs&, const int32_t* segment, const Gradients&, cudaStream_t);

}  // namespace tokendetr::packed::cuda
