// The CUDA kernels' host interface, free of torch types.
#pragma once

#include <cuda_runtime_api.h>

#include "tensors.h"

namespace tokendetr::cuda {

// Cells between pixel centers, those at the borders included: (height + 1) * (width + 1) per level. Head m of any image
// owns cells [m, m + 1) * cells_per_head; samples outside their level have cell M * cells_per_head.
int64_t cells_per_head(const Problem& problem);

// Checks that the kernels can address the problem: offsets are 64 bits wide, but the length of a row of pixels and the
// number of heads of all images are 32.
const char* unsupported(const Problem& problem);  // null or the reason

struct Launch {
  cudaStream_t stream;
  int multiprocessors;
};

// These launch and return the launch's error, which the caller must raise.
cudaError_t forward(const Problem&, Storage, const Inputs&, void* output, const Launch&);
cudaError_t backward(const Problem&, Storage, const Inputs&, const Gradients&, const Launch&);
// starts[c] for all c below `cells`: how many of the sorted numbers are less than c.
cudaError_t find_cells(const int32_t* sorted, int64_t samples, int64_t cells, int64_t* starts, const Launch&);
// The value gradient [B, N, M, D], in the storage type, of one image, from what `backward` noted.
cudaError_t collect(const Problem&, Storage, const void* grad_output, const void* shares, const SortedSamples&,
                    void* grad_value, const Launch&);

}  // namespace tokendetr::cuda
