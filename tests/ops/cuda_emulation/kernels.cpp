// The CUDA kernels run on a CPU, behind the interface that test_cuda_emulated.py calls through ctypes.
#define TOKENDETR_EMULATED_DEVICE "emulated_device.h"

#include <type_traits>

#include "backward.h"
#include "collect.h"
#include "forward.h"

namespace {

using namespace tokendetr;
using namespace tokendetr::cuda;

alignas(16) const char kZeros[16] = {};

Problem problem_of(const int64_t* sizes, const int64_t* level_shapes) {
  Problem problem{};
  problem.batch = sizes[0];
  problem.heads = sizes[1];
  problem.width = sizes[2];
  problem.queries = sizes[3];
  problem.levels = static_cast<int>(sizes[4]);
  problem.points = static_cast<int>(sizes[5]);
  for (int l = 0; l < problem.levels; ++l) {
    problem.level[l] = {level_shapes[2 * l], level_shapes[2 * l + 1], problem.tokens};
    problem.tokens += level_shapes[2 * l] * level_shapes[2 * l + 1];
  }
  return problem;
}

// A grid of three blocks of two warps, one warp after the other; run(thread, shared memory of the warp).
template <class Run>
void run_grid(int warp_bytes, const Run& run) {
  constexpr int kBlocks = 3, kWarps = 2;
  alignas(16) static char memory[1 << 16];
  if (warp_bytes > static_cast<int>(sizeof(memory))) std::abort();
  for (int block = 0; block < kBlocks; ++block) {
    for (int warp = 0; warp < kWarps; ++warp) {
      std::memset(memory, 0xff, sizeof(memory));
      Warp::run([&](int lane) { run(Thread{lane, warp, kWarps, block, kBlocks}, memory); });
    }
  }
}

}  // namespace

extern "C" {

// sizes: B, M, D, Q, L, P; storage: the number of a Storage; inputs: value, locations, weights, reference or null.
void emulate_forward(const int64_t* sizes, const int64_t* level_shapes, int storage, const void* const* inputs,
                     int reference_width, void* output) {
  const Problem problem = problem_of(sizes, level_shapes);
  const Geometry geometry = geometry_of(problem);
  const Inputs in{inputs[0], inputs[1], inputs[2], inputs[3], reference_width};
  with_kind(problem, static_cast<Storage>(storage), [&](auto kind) {
    using K = decltype(kind);
    run_grid(K::kWarpBytes, [&](const Thread& thread, char* memory) {
      forward_of_warp<K>(geometry, in, static_cast<typename K::S*>(output), thread, kZeros, memory);
    });
  });
}

// gradients: output, value or null, locations, weights, reference or null, cells or null, shares or null.
void emulate_backward(const int64_t* sizes, const int64_t* level_shapes, int storage, const void* const* inputs,
                      int reference_width, void* const* gradients) {
  const Problem problem = problem_of(sizes, level_shapes);
  const Geometry geometry = geometry_of(problem);
  const Inputs in{inputs[0], inputs[1], inputs[2], inputs[3], reference_width};
  const Gradients to{gradients[0], gradients[1], gradients[2],
                     gradients[3], gradients[4], {static_cast<int32_t*>(gradients[5]), gradients[6]}};
  with_kind(problem, static_cast<Storage>(storage), [&](auto kind) {
    using K = decltype(kind);
    run_grid(K::kWarpBytes, [&](const Thread& thread, char* memory) {
      backward_of_warp<K>(geometry, in, to, thread, kZeros, memory);
    });
  });
}

void emulate_find_cells(const int32_t* sorted, int64_t samples, int64_t cells, int64_t* starts) {
  for (int64_t cell = 0; cell < cells; ++cell)
    starts[cell] = first_at_least(sorted, samples, static_cast<int32_t>(cell));
}

void emulate_collect(const int64_t* sizes, const int64_t* level_shapes, int storage, const void* grad_output,
                     const void* shares, int64_t image, const int64_t* order, const int64_t* cell_start,
                     void* grad_value) {
  const Problem problem = problem_of(sizes, level_shapes);
  const Geometry geometry = geometry_of(problem);
  const SortedSamples sorted{image, order, cell_start};
  with_kind(problem, static_cast<Storage>(storage), [&](auto kind) {
    using K = decltype(kind);
    run_grid(kCollectBytes<K>, [&](const Thread& thread, char* memory) {
      collect_of_warp<K>(geometry, static_cast<const typename K::S*>(grad_output),
                         static_cast<const typename K::T*>(shares), sorted, static_cast<typename K::S*>(grad_value),
                         thread, memory);
    });
  });
}

}  // extern "C"
