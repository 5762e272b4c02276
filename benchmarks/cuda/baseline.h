// What the plain kernels take, free of torch types. All pointers are to contiguous float32 tensors on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace baseline {

constexpr int kMaxLevels = 8;

struct Sizes {
  int batch, tokens, heads, width, queries, levels, points;
  int height[kMaxLevels], columns[kMaxLevels], start[kMaxLevels];
};

struct Inputs {
  const float* value;      // [B, N, M, D]
  const float* locations;  // [B, Q, M, L, P, 2]
  const float* weights;    // [B, Q, M, L, P]
};

struct Gradients {
  float* value;  // zeroed
  float* locations;
  float* weights;
};

// They launch and return the launch's error. output, incoming: [B, Q, M * D].
cudaError_t forward(const Sizes& sizes, const Inputs& in, float* output, cudaStream_t stream);
cudaError_t backward(const Sizes& sizes, const Inputs& in, const float* incoming, const Gradients& to,
                     cudaStream_t stream);

}  // namespace baseline
