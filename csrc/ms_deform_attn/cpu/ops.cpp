// The CPU kernels as operators: allocation and the division of heads among threads.
#include <algorithm>
#include <atomic>
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

  // Whether samples are read in place: copying a head's values pays once it is sampled about as often as it has tokens.
  bool reads_in_place(double samples_per_token) const {
    const double samples = static_cast<double>(problem.queries) * problem.samples();
    return kernels().reads_in_place(problem, storage) &&
           samples < samples_per_token * static_cast<double>(problem.tokens);
  }
};

// From these many samples per token of a head on. The backward copies sooner: reading in place also means adding in
// place, to a gradient that was zeroed as a whole before.
constexpr double kForwardCopies = 1.0;
constexpr double kBackwardCopies = 0.5;

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

// Where values are read in place, a block of queries visits all heads before the next block starts: neighboring
// queries sample the same tokens, whose heads share pages.
constexpr int64_t kQueryBlock = 32;

int64_t query_blocks(const Problem& p) { return (p.queries + kQueryBlock - 1) / kQueryBlock; }

void forward_in_place(const Call& call, void* output) {
  const Problem& p = call.problem;
  const int64_t blocks = query_blocks(p);
  for_each_item(p.batch * blocks, [&] {
    return [&](int64_t item) {
      const int64_t first = item % blocks * kQueryBlock, last = std::min(first + kQueryBlock, p.queries);
      for (int64_t head = 0; head < p.heads; ++head) {
        kernels().forward(p, call.storage, call.inputs, item / blocks, head, first, last, nullptr, output);
      }
    };
  });
}

// The queries of an image's head are split if there are too few (image, head) pairs for all threads. A package is what
// one thread does at a time: with splits it takes neighboring ones, so that it copies a head's values once.
void forward_padded(const Call& call, void* output) {
  const Problem& p = call.problem;
  const Kernels& set = kernels();
  const int64_t image_heads = call.image_heads(), threads = thread_count();
  const int64_t splits = image_heads % threads == 0 || image_heads >= 4 * threads ? 1 : std::min(threads, p.queries);
  const int64_t items = image_heads * splits, packages = splits == 1 ? image_heads : threads;
  for_each_item(packages, [&] {
    return [&, memory = std::make_unique<Scratch>(set.padded_bytes(p, call.storage)),
            copied = int64_t{-1}](int64_t package) mutable {
      void* padded_values = memory->data();
      for (int64_t item = items * package / packages; item < items * (package + 1) / packages; ++item) {
        const int64_t image_head = item / splits, split = item % splits;
        if (image_head != copied) {
          set.copy_padded(p, call.storage, call.inputs.value, image_head / p.heads, image_head % p.heads,
                          padded_values);
          copied = image_head;
        }
        set.forward(p, call.storage, call.inputs, image_head / p.heads, image_head % p.heads,
                    p.queries * split / splits, p.queries * (split + 1) / splits, padded_values, output);
      }
    };
  });
}

Tensor forward(const Call& call) {
  const Problem& p = call.problem;
  Tensor output = result_tensor({p.batch, p.queries, p.heads * p.width}, call.value, call.value.scalar_type());
  if (call.empty()) return output;
  void* to = output.mutable_data_ptr();
  call.reads_in_place(kForwardCopies) ? forward_in_place(call, to) : forward_padded(call, to);
  return output;
}

// The backward of (image, head) pairs [begin, end), which one thread owns.
void backward_in_place(const Call& call, const Gradients& gradients, int64_t begin, int64_t end) {
  const Problem& p = call.problem;
  for (int64_t image = begin / p.heads; image * p.heads < end; ++image) {
    const int64_t first_head = std::max<int64_t>(begin - image * p.heads, 0);
    const int64_t last_head = std::min(end - image * p.heads, p.heads);
    for (int64_t first = 0; first < p.queries; first += kQueryBlock) {
      const int64_t last = std::min(first + kQueryBlock, p.queries);
      for (int64_t head = first_head; head < last_head; ++head) {
        kernels().backward(p, call.storage, call.inputs, image, head, first, last, nullptr, nullptr, gradients);
      }
    }
  }
}

void backward_padded(const Call& call, const Gradients& gradients) {
  const Problem& p = call.problem;
  const Kernels& set = kernels();
  for_each_item(call.image_heads(), [&] {
    const int64_t padded_bytes = (set.padded_bytes(p, call.storage) + 63) / 64 * 64;
    return [&, padded_bytes,
            memory = std::make_unique<Scratch>(padded_bytes + set.padded_gradient_bytes(p, call.storage))](
               int64_t image_head) {
      const int64_t image = image_head / p.heads, head = image_head % p.heads;
      void* padded_values = memory->data();
      void* padded_gradient = static_cast<char*>(padded_values) + padded_bytes;
      set.copy_padded(p, call.storage, call.inputs.value, image, head, padded_values);
      set.backward(p, call.storage, call.inputs, image, head, 0, p.queries, padded_values, padded_gradient, gradients);
    };
  });
}

// Gradients of this many bytes would leave the caches before they are read.
constexpr size_t kStreamedBytes = size_t{1} << 24;

Tensor like(const Tensor& tensor) { return result_tensor(tensor.sizes(), tensor, tensor.scalar_type()); }

// Each thread owns whole heads, so that every run gives the same bits.
CallGradients backward(const Call& call, const Tensor& grad_output, Wanted wanted) {
  const Problem& p = call.problem;
  const bool in_place = call.reads_in_place(kBackwardCopies) && call.value.element_size() >= 4;
  CallGradients result{like(call.value), like(call.locations), like(call.weights), std::nullopt};
  if (in_place || call.empty()) torch::stable::zero_(result.value);
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
  if (in_place) {
    parallel_for(0, call.image_heads(), 1,
                 [&](int64_t begin, int64_t end) { backward_in_place(call, gradients, begin, end); });
  } else {
    backward_padded(call, gradients);
  }
  return result;
}

}  // namespace

void add_cpu_operators(torch::stable::detail::StableLibrary& library) {
  Operators<Call, forward, backward>::add_to(library);
}

}  // namespace tokendetr
