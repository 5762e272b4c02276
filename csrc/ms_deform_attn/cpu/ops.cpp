// The CPU kernels as operators: allocation and the division of heads among threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "../../common/parallel.h"
#include "../../common/results.h"
#include "../../common/scratch.h"
#include "../operators.h"
#include "../registration.h"
#include "kernels.h"

namespace tokendetr {
namespace {

// A call's tensors, contiguous and with coordinates in the type of the sums, and the kernels' view of them.
struct Call {
  Problem problem;
  Storage storage;
  Tensor value, locations, weights;
  OptionalTensor reference;
  Inputs inputs;

  Call(const Problem& sizes, const Tensor& values, const Tensor& sample_locations, const Tensor& sample_weights,
       const OptionalTensor& references)
      : problem(sizes),
        storage(storage_of(values)),
        value(dense(values)),
        locations(dense(in_type(sample_locations, sum_type(values)))),
        weights(dense(in_type(sample_weights, sum_type(values)))) {
    if (references) reference = dense(in_type(*references, sum_type(values)));
    inputs = {value.const_data_ptr(), locations.const_data_ptr(), weights.const_data_ptr(),
              reference ? reference->const_data_ptr() : nullptr, reference ? static_cast<int>(reference->size(3)) : 0};
  }

  bool empty() const { return problem.batch == 0 || problem.queries == 0; }

  int64_t image_heads() const { return problem.batch * problem.heads; }
};

// Calls work(item) for every item; each thread takes the next one whenever it is free, so that a slow thread does not
// hold up the others. `prepare` makes a thread's work.
template <class Prepare>
void for_each_item(int64_t items, Prepare prepare) {
  std::atomic<int64_t> next{0};
  parallel_for(0, std::min<int64_t>(items, thread_count()), 1, [&](int64_t, int64_t) {
    auto work = prepare();
    for (int64_t item = next++; item < items; item = next++) work(item);
  });
}

// The queries of an image's head are split if there are too few (image, head) pairs for all threads. A package is what
// one thread does at a time: with splits it takes neighboring ones, so that it copies a head's values once.
void forward_heads(const Call& call, void* output) {
  const Problem& p = call.problem;
  const Kernels& set = kernels();
  const LevelSet levels = set.copied_levels(p, call.storage, kForwardCopies);
  const int64_t image_heads = call.image_heads(), threads = thread_count();
  const int64_t splits = image_heads % threads == 0 || image_heads >= 4 * threads ? 1 : std::min(threads, p.queries);
  const int64_t items = image_heads * splits, packages = splits == 1 ? image_heads : threads;
  for_each_item(packages, [&] {
    return [&, memory = std::make_unique<Scratch>(set.padded_bytes(p, call.storage, levels)),
            copied = int64_t{-1}](int64_t package) mutable {
      const Copies copies{levels, memory->data(), nullptr};
      for (int64_t item = items * package / packages; item < items * (package + 1) / packages; ++item) {
        const int64_t image_head = item / splits, split = item % splits;
        const int64_t image = image_head / p.heads, head = image_head % p.heads;
        if (image_head != copied) set.copy_padded(p, call.storage, call.inputs.value, image, head, copies);
        copied = image_head;
        set.forward(p, call.storage, call.inputs, image, head, p.queries * split / splits,
                    p.queries * (split + 1) / splits, copies, output);
      }
    };
  });
}

Tensor forward(const Call& call) {
  const Problem& p = call.problem;
  Tensor output = result_tensor({p.batch, p.queries, p.heads * p.width}, call.value, call.value.scalar_type());
  if (!call.empty()) forward_heads(call, output.mutable_data_ptr());
  return output;
}

// Zeroes the gradient of levels that are not copied, which is added to.
void zero_in_place(const Call& call, LevelSet copied, void* gradient) {
  const Problem& p = call.problem;
  const int64_t token = p.heads * p.width * static_cast<int64_t>(call.value.element_size());
  for (int64_t image = 0; image < p.batch; ++image) {
    for (int l = 0; l < p.levels; ++l) {
      if (has_level(copied, l)) continue;
      char* first = static_cast<char*>(gradient) + (image * p.tokens + p.level[l].start) * token;
      constexpr int64_t kLeast = 1 << 10;  // tokens that are worth a thread
      parallel_for(0, p.level[l].height * p.level[l].width, kLeast, [&](int64_t begin, int64_t end) {
        std::memset(first + begin * token, 0, static_cast<size_t>((end - begin) * token));
      });
    }
  }
}

void backward_heads(const Call& call, LevelSet levels, const Gradients& gradients) {
  const Problem& p = call.problem;
  const Kernels& set = kernels();
  for_each_item(call.image_heads(), [&] {
    const int64_t padded_bytes = (set.padded_bytes(p, call.storage, levels) + 63) / 64 * 64;
    const int64_t bytes = padded_bytes + set.padded_gradient_bytes(p, call.storage, levels);
    return [&, padded_bytes, memory = std::make_unique<Scratch>(bytes)](int64_t image_head) {
      const int64_t image = image_head / p.heads, head = image_head % p.heads;
      const Copies copies{levels, memory->data(), static_cast<char*>(memory->data()) + padded_bytes};
      set.copy_padded(p, call.storage, call.inputs.value, image, head, copies);
      set.backward(p, call.storage, call.inputs, image, head, copies, gradients);
    };
  });
}

// Gradients of this many bytes would leave the caches before they are read.
constexpr size_t kStreamedBytes = size_t{1} << 24;

Tensor like(const Tensor& tensor) { return result_tensor(tensor.sizes(), tensor, tensor.scalar_type()); }

// Each thread owns whole heads, so that every run gives the same bits.
CallGradients backward(const Call& call, const Tensor& grad_output, Wanted wanted) {
  const Problem& p = call.problem;
  CallGradients result{like(call.value), like(call.locations), like(call.weights), std::nullopt};
  if (call.empty()) torch::stable::zero_(result.value);
  if (wanted.reference) {
    result.reference = zeros_tensor({p.heads, p.batch, p.queries, p.levels, call.reference->size(3)}, *call.reference,
                                    call.reference->scalar_type());
  }
  if (call.empty()) return result;
  const Tensor incoming = dense(grad_output);
  const Gradients gradients{
      incoming.const_data_ptr(),
      result.value.mutable_data_ptr(),
      result.locations.mutable_data_ptr(),
      result.weights.mutable_data_ptr(),
      wanted.reference ? result.reference->mutable_data_ptr() : nullptr,
      bytes_of(result.value) + bytes_of(result.locations) + bytes_of(result.weights) >= kStreamedBytes};
  const bool is_half = call.value.element_size() < 4;
  const LevelSet copied = kernels().copied_levels(p, call.storage, is_half ? kCopyAll : kBackwardCopies);
  zero_in_place(call, copied, gradients.value);
  backward_heads(call, copied, gradients);
  return result;
}

}  // namespace

void add_cpu_operators(torch::stable::detail::StableLibrary& library) {
  Operators<Call, forward, backward>::add_to(library);
}

}  // namespace tokendetr
