#include "forward.h"

#include "launch.h"
#include "tensor_cores.h"

namespace tokendetr::packed::cuda {
namespace {

template <class K>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp)
    forward_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Write output) {
  const Items items = items_of_warp();
  for (int64_t item = items.first; item < launch.work.items; item += items.step) {
    forward_of_warp<K>(launch.problem, launch.work, launch.in, launch.segment, output, item,
                       static_cast<int>(threadIdx.x % kWarp));
  }
}

template <class S>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp)
    tensor_forward_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Write output) {
  const Items items = items_of_warp();
  for (int64_t item = items.first; item < launch.work.items; item += items.step) {
    tensor_forward_of_warp<S>(launch.problem, launch.in, launch.segment, output, item,
                              static_cast<int>(threadIdx.x % kWarp));
  }
}

}  // namespace

cudaError_t forward(const Problem& problem, Storage storage, const Inputs& in, const int32_t* segment,
                    const Write& output, cudaStream_t stream) {
  Launch launch{problem, work_of(problem, storage, false), in, segment};
  const bool done = with_tensor_cores(problem, storage, [&](auto number) {
    launch.work.items = tensor_items(problem);
    tensor_forward_kernel<decltype(number)>
        <<<blocks_for(launch.work.items), kWarpsPerBlock * kWarp, 0, stream>>>(launch, output);
  });
  if (done) return cudaGetLastError();
  with_kind(storage, load_bytes(problem, storage) == 16, [&](auto kind) {
    using K = decltype(kind);
    forward_kernel<K><<<blocks_for(launch.work.items), kWarpsPerBlock * kWarp, 0, stream>>>(launch, output);
  });
  return cudaGetLastError();
}

}  // namespace tokendetr::packed::cuda
