// The choice of a kernel: storage type, plain or fused, channels per lane, lanes per group.
#include <algorithm>

#include "backward.cuh"
#include "forward.cuh"

namespace tokendetr::cuda {
namespace {

struct Launch {
  unsigned blocks;
  int lanes;
};

Launch launch_of(const Problem& problem, int vector) {
  int lanes = 4;
  while (lanes < 32 && lanes * vector < problem.width) lanes *= 2;
  const int64_t units = problem.batch * problem.queries * problem.heads;
  const int64_t per_block = kThreads / lanes;
  const int64_t blocks = std::min<int64_t>((units + per_block - 1) / per_block, int64_t{1} << 30);
  return {static_cast<unsigned>(blocks), lanes};
}

template <class T, class S, int kVector, bool kFused>
void run_forward(const Problem& problem, const Inputs& in, void* output, cudaStream_t stream) {
  constexpr int kUsual = 32 / kVector >= 4 ? 32 / kVector : 4;  // lanes for heads of 32 channels
  const Launch launch = launch_of(problem, kVector);
  const auto kernel = launch.lanes == kUsual && kVector > 1 ? forward_kernel<T, S, kVector, kUsual, kFused>
                                                            : forward_kernel<T, S, kVector, 0, kFused>;
  kernel<<<launch.blocks, kThreads, 0, stream>>>(problem, in, static_cast<S*>(output), launch.lanes);
}

template <class T, class S, int kVector, bool kFused>
void run_backward(const Problem& problem, const Inputs& in, const Gradients& gradients, cudaStream_t stream) {
  constexpr int kUsual = 32 / kVector >= 4 ? 32 / kVector : 4;
  const Launch launch = launch_of(problem, kVector);
  const auto kernel = launch.lanes == kUsual && kVector > 1 ? backward_kernel<T, S, kVector, kUsual, kFused>
                                                            : backward_kernel<T, S, kVector, 0, kFused>;
  kernel<<<launch.blocks, kThreads, 0, stream>>>(problem, in, gradients, launch.lanes);
}

template <class Function>
void with_types(Storage storage, int64_t width, Function function) {
  switch (storage) {
    case Storage::kFloat64:
      return function.template operator()<double, double, 1>();
    case Storage::kFloat32:
      return width % 4 == 0 ? function.template operator()<float, float, 4>()
                            : function.template operator()<float, float, 1>();
    case Storage::kBFloat16:
      return width % 8 == 0 ? function.template operator()<float, __nv_bfloat16, 8>()
                            : function.template operator()<float, __nv_bfloat16, 1>();
    default:
      return width % 8 == 0 ? function.template operator()<float, __half, 8>()
                            : function.template operator()<float, __half, 1>();
  }
}

}  // namespace

cudaError_t forward(const Problem& problem, Storage storage, const Inputs& in, void* output, cudaStream_t stream) {
  with_types(storage, problem.width, [&]<class T, class S, int kVector>() {
    in.reference != nullptr ? run_forward<T, S, kVector, true>(problem, in, output, stream)
                            : run_forward<T, S, kVector, false>(problem, in, output, stream);
  });
  return cudaGetLastError();
}

cudaError_t backward(const Problem& problem, Storage storage, const Inputs& in, const Gradients& gradients,
                     cudaStream_t stream) {
  with_types(storage, problem.width, [&]<class T, class S, int kVector>() {
    in.reference != nullptr ? run_backward<T, S, kVector, true>(problem, in, gradients, stream)
                            : run_backward<T, S, kVector, false>(problem, in, gradients, stream);
  });
  return cudaGetLastError();
}

}  // namespace tokendetr::cuda
