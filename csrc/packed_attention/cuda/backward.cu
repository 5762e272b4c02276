#include "backward.h"

#include "launch.h"

namespace tokendetr::packed::cuda {
namespace {

// Told to fit one block, the compiler takes the registers that it needs; left alone it aims for more blocks and spills.
constexpr int kBlocksPerProcessor = 1;

template <class K>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp, kBlocksPerProcessor)
    queries_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Gradients to) {
  const Items items = items_of_warp();
  for (int64_t item = items.first; item < launch.work.items; item += items.step) {
    backward_of_queries<K>(launch.problem, launch.work, launch.in, launch.segment, to, item,
                           static_cast<int>(threadIdx.x % kWarp));
  }
}

template <class K>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp, kBlocksPerProcessor)
    keys_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Gradients to) {
  const Items items = items_of_warp();
  for (int64_t item = items.first; item < launch.work.items; item += items.step) {
    backward_of_keys<K>(launch.problem, launch.work, launch.in, launch.segment, to, item,
                        static_cast<int>(threadIdx.x % kWarp));
  }
}

}  // namespace

cudaError_t backward(const Problem& problem, Storage storage, const Inputs& in, const int32_t* segment,
                     const Gradients& to, cudaStream_t stream) {
  const Launch queries{problem, work_of(problem, storage, false), in, segment};
  const Launch keys{problem, work_of(problem, storage, to.table != nullptr), in, segment};
  with_kind(storage, load_bytes(problem, storage) == 16, [&](auto kind) {
    using K = decltype(kind);
    queries_kernel<K><<<blocks_for(queries.work.items), kWarpsPerBlock * kWarp, 0, stream>>>(queries, to);
    keys_kernel<K><<<blocks_for(keys.work.items), kWarpsPerBlock * kWarp, 0, stream>>>(keys, to);
  });
  return cudaGetLastError();
}

}  // namespace tokendetr::packed::cuda
