// Packed attention's CUDA kernels run on a CPU, behind the interface that test_packed_cuda_emulated.py calls.
#define TOKENDETR_EMULATED_DEVICE "emulated_device.h"

#include <type_traits>

#include "backward.h"
#include "tensor_cores.h"

namespace {

using namespace tokendetr::packed;
using namespace tokendetr::packed::cuda;

Read read_of(void* data, const int64_t* strides) { return {data, strides[0], strides[1], strides[2]}; }
Write write_of(void* data, const Problem& p) { return {data, p.slots * p.heads * p.width, p.heads * p.width, p.width}; }

struct Call {
  Problem problem;
  tokendetr::Storage storage;
  Inputs in;
  const int32_t* segment;
  bool wide;
};

// sizes: G, T, M, D, R, storage, whether loads are 16 bytes wide; tensors: query, key, value, segment, position, table,
// key bias; strides: three of query, key and value each.
Call call_of(const int64_t* sizes, double scale, void* const* tensors, const int64_t* strides) {
  Call call{{sizes[0], sizes[1], sizes[2], sizes[3], scale, sizes[4]},
            static_cast<tokendetr::Storage>(sizes[5]),
            {},
            static_cast<const int32_t*>(tensors[3]),
            sizes[6] != 0};
  call.in = {read_of(tensors[0], strides),
             read_of(tensors[1], strides + 3),
             read_of(tensors[2], strides + 6),
             static_cast<const int32_t*>(tensors[4]),
             tensors[5],
             tensors[6]};
  return call;
}

template <class Run>
void run_warps(const Work& work, const Run& run) {
  for (int64_t item = 0; item < work.items; ++item) {
    tokendetr::cuda::Warp::run([&](int lane) { run(item, lane); });
  }
}

}  // namespace

extern "C" {

int64_t emulated_parts(const int64_t* sizes) {
  const int64_t none[9] = {};
  void* const nothing[7] = {};
  const Call call = call_of(sizes, 1.0, nothing, none);
  return work_of(call.problem, call.storage, true).parts();
}

void emulate_forward(const int64_t* sizes, double scale, void* const* tensors, const int64_t* strides, void* output) {
  const Call call = call_of(sizes, scale, tensors, strides);
  Work work = work_of(call.problem, call.storage, false);
  const bool done = with_tensor_cores(call.problem, call.storage, [&](auto number) {
    work.items = tensor_items(call.problem);
    run_warps(work, [&](int64_t item, int lane) {
      tensor_forward_of_warp<decltype(number)>(call.problem, call.in, call.segment, write_of(output, call.problem),
                                               item, lane);
    });
  });
  if (done) return;
  with_kind(call.storage, call.wide, [&](auto kind) {
    run_warps(work, [&](int64_t item, int lane) {
      forward_of_warp<decltype(kind)>(call.problem, work, call.in, call.segment, write_of(output, call.problem), item,
                                      lane);
    });
  });
}

// gradients: output (of the strides strides[9:12]), query, key, value, statistics, table or null, key bias or null.
void emulate_backward(const int64_t* sizes, double scale, void* const* tensors, const int64_t* strides,
                      void* const* gradients) {
  const Call call = call_of(sizes, scale, tensors, strides);
  const Problem& p = call.problem;
  const Gradients to{read_of(gradients[0], strides + 9),
                     write_of(gradients[1], p),
                     write_of(gradients[2], p),
                     write_of(gradients[3], p),
                     gradients[4],
                     gradients[5],
                     gradients[6]};
  const Work queries = work_of(p, call.storage, false), keys = work_of(p, call.storage, to.table != nullptr);
  with_kind(call.storage, call.wide, [&](auto kind) {
    using K = decltype(kind);
    run_warps(queries, [&](int64_t item, int lane) {
      backward_of_queries<K>(p, queries, call.in, call.segment, to, item, lane);
    });
    run_warps(keys,
              [&](int64_t item, int lane) { backward_of_keys<K>(p, keys, call.in, call.segment, to, item, lane); });
  });
}

}  // extern "C"
