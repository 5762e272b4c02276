// The CUDA kernels' host interface, free of torch types.
#pragma once

#include <cuda_runtime_api.h>

#include "../problem.h"

namespace tokendetr::cuda {

enum class Storage { kFloat64, kFloat32, kBFloat16, kFloat16 };

// As on the CPU: coordinates are double for float64 values and float otherwise; everything is contiguous.
struct Inputs {
  const void* value;      // [B, N, M, D], storage type
  const void* locations;  // [B, Q, M, L, P, 2]: locations, or offsets in the fused form
  const void* weights;    // [B, Q, M, L, P]: weights, or logits in the fused form
  const void* reference;  // [B, Q, L, reference_width] in the fused form, else null
  int reference_width;    // 2 or 4
};

struct Gradients {
  const void* output;       // [B, Q, M * D], storage type: the incoming gradient
  void* value;              // [B, N, M, D], zeroed, float (double for float64): added to in any order; or null
  long long* fixed_value;   // [B, N, M, D], zeroed: the same in fixed point, a sum that does not depend on the order
  double fixed_scale;       // what one unit of `fixed_value` is the inverse of
  void* locations;          // like Inputs::locations
  void* weights;            // like Inputs::weights
  void* reference;          // [M, B, Q, L, reference_width], zeroed, one part per head; or null
};

// Launch on a stream and return the launch's error, which the caller must raise.
cudaError_t forward(const Problem& problem, Storage storage, const Inputs& inputs, void* output, cudaStream_t stream);
cudaError_t backward(const Problem& problem, Storage storage, const Inputs& inputs, const Gradients& gradients,
                     cudaStream_t stream);

}  // namespace tokendetr::cuda
