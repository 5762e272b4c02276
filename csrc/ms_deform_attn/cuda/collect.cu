#include "collect.h"

#include "launch.h"

namespace tokendetr::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;

template <class K>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    collect_kernel(const __grid_constant__ Geometry geometry, const typename K::S* grad_output,
                   const typename K::T* shares, const SortedSamples sorted, typename K::S* grad_value) {
  __shared__ alignas(16) char memory[kThreads / kWarp * kCollectBytes<K>];
  const Thread thread = this_thread();
  collect_of_warp<K>(geometry, grad_output, shares, sorted, grad_value, thread,
                     memory + thread.warp * kCollectBytes<K>);
}

template <class K>
void launch_collect(const Problem& problem, const void* grad_output, const void* shares, const SortedSamples& sorted,
                    void* grad_value, const Launch& launch) {
  const int64_t warps = problem.tokens * problem.heads;
  const unsigned blocks = static_cast<unsigned>(
      std::clamp<int64_t>(warps / (kThreads / kWarp), 1, int64_t{launch.multiprocessors} * kBlocksPerMultiprocessor));
  collect_kernel<K><<<blocks, kThreads, 0, launch.stream>>>(
      geometry_of(problem), static_cast<const typename K::S*>(grad_output), static_cast<const typename K::T*>(shares),
      sorted, static_cast<typename K::S*>(grad_value));
}

__global__ void find_cells_kernel(const int32_t* sorted, int64_t samples, int64_t cells, int64_t* starts) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t cell = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; cell < cells; cell += step) {
    starts[cell] = first_at_least(sorted, samples, static_cast<int32_t>(cell));
  }
}

}  // namespace

cudaError_t find_cells(const int32_t* sorted, int64_t samples, int64_t cells, int64_t* starts, const Launch& launch) {
  const unsigned blocks = static_cast<unsigned>(std::clamp<int64_t>(
      (cells + kThreads - 1) / kThreads, 1, int64_t{launch.multiprocessors} * kBlocksPerMultiprocessor));
  find_cells_kernel<<<blocks, kThreads, 0, launch.stream>>>(sorted, samples, cells, starts);
  return cudaGetLastError();
}

int64_t cells_per_head(const Problem& problem) {
  int64_t cells = 0;
  for (int l = 0; l < problem.levels; ++l) cells += (problem.level[l].height + 1) * (problem.level[l].width + 1);
  return cells;
}

const char* unsupported(const Problem& problem) {
  constexpr int64_t kMost32 = int64_t{1} << 31;
  const auto most = [](int64_t a, int64_t b) { return b > 0 && a > kMost32 / b; };
  if (most(problem.batch, problem.heads)) return "images times heads must stay below 2^31";
  if (most(problem.heads, problem.width)) return "heads times channels per head must stay below 2^31";
  for (int l = 0; l < problem.levels; ++l) {
    if (most(problem.level[l].width, problem.heads * problem.width)) {
      return "a row of a level must have less than 2^31 elements";
    }
  }
  if (most(cells_per_head(problem), problem.heads)) return "heads times pixels must stay below 2^31";
  return nullptr;
}

cudaError_t collect(const Problem& problem, Storage storage, const void* grad_output, const void* shares,
                    const SortedSamples& sorted, void* grad_value, const Launch& launch) {
  with_kind(problem, storage, [&](auto kind) {
    // The usual sizes gain nothing here: theirs is the vector kernel.
    using K = decltype(kind);
    using General = Kind<typename K::T, typename K::S, K::kLanes, K::kVector, 2, false>;
    launch_collect<General>(problem, grad_output, shares, sorted, grad_value, launch);
  });
  return cudaGetLastError();
}

}  // namespace tokendetr::cuda
