#include "forward.h"

#include "launch.h"

namespace tokendetr::cuda {
namespace {

__device__ uint4 no_pixels;  // zeros

// One block takes most registers of a multiprocessor: 64 per thread for the usual sizes, 80 to 128 for others.
template <class K>
constexpr int kThreads = K::kUsual                                ? 1024
                         : sizeof(typename K::T) == sizeof(float) ? 768
                                                                  : 512;

template <class K>
__global__ void __launch_bounds__(kThreads<K>, 1)
    forward_kernel(const __grid_constant__ Geometry geometry, const __grid_constant__ Inputs in,
                   typename K::S* output) {
  __shared__ alignas(16) char memory[kThreads<K> / kWarp * K::kWarpBytes];
  const Thread thread = this_thread();
  forward_of_warp<K>(geometry, in, output, thread, &no_pixels, memory + thread.warp * K::kWarpBytes);
}

}  // namespace

cudaError_t forward(const Problem& problem, Storage storage, const Inputs& in, void* output, const Launch& launch) {
  const Geometry geometry = geometry_of(problem);
  with_kind(problem, storage, [&](auto kind) {
    using K = decltype(kind);
    const unsigned blocks = blocks_for(geometry.image_heads * geometry.chunks * (kChunk / K::kGroups), launch);
    forward_kernel<K><<<blocks, kThreads<K>, 0, launch.stream>>>(geometry, in, static_cast<typename K::S*>(output));
  });
  return cudaGetLastError();
}

}  // namespace tokendetr::cuda
