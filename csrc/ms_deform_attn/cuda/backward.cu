#include "backward.h"

#include "launch.h"

namespace tokendetr::cuda {
namespace {

__device__ uint4 no_pixels;  // zeros

// One block takes most registers of a multiprocessor: 128 per thread for the usual sizes, up to 168 for others.
template <class K>
constexpr int kThreads = K::kUsual ? 512 : 384;

template <class K>
__global__ void __launch_bounds__(kThreads<K>, 1)
    backward_kernel(const __grid_constant__ Geometry geometry, const __grid_constant__ Inputs in,
                    const __grid_constant__ Gradients gradients) {
  __shared__ alignas(16) char memory[kThreads<K> / kWarp * K::kWarpBytes];
  const Thread thread = this_thread();
  backward_of_warp<K>(geometry, in, gradients, thread, &no_pixels, memory + thread.warp * K::kWarpBytes);
}

}  // namespace

cudaError_t backward(const Problem& problem, Storage storage, const Inputs& in, const Gradients& gradients,
                     const Launch& launch) {
  const Geometry geometry = geometry_of(problem);
  with_kind(problem, storage, [&](auto kind) {
    using K = decltype(kind);
    const unsigned blocks = blocks_for(geometry.image_heads * geometry.chunks * (kChunk / K::kGroups), launch);
    backward_kernel<K><<<blocks, kThreads<K>, 0, launch.stream>>>(geometry, in, gradients);
  });
  return cudaGetLastError();
}

}  // namespace tokendetr::cuda
