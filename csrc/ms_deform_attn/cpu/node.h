// Deformable attention as the node tokendetr::MSDeformAttn of exported models, free of torch and of any runtime.
//
// Inputs: value [B, N, M, D], reference points [B, Q, L, 2 or 4], offsets [B, Q, M, L, P, 2], logits [B, Q, M, L, P].
// Attribute level_shapes: height and width of each level, finest first. Output: [B, Q, M * D]. All float32.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../../common/check.h"
#include "../../common/scratch.h"
#include "kernels.h"

namespace tokendetr {

template <class Shape>  // of the runtime: something with [] and size()
Problem node_problem(const Shape& value, const Shape& reference, const Shape& offsets,
                     const std::vector<int64_t>& level_shapes) {
  TOKENDETR_CHECK_ARGUMENT(value.size() == 4 && reference.size() == 4 && offsets.size() == 6,
                           "value, reference points and offsets must have 4, 4 and 6 dimensions, got ", value.size(),
                           ", ", reference.size(), " and ", offsets.size());
  Problem p{};
  p.batch = static_cast<int64_t>(value[0]);
  p.tokens = static_cast<int64_t>(value[1]);
  p.heads = static_cast<int64_t>(value[2]);
  p.width = static_cast<int64_t>(value[3]);
  p.queries = static_cast<int64_t>(offsets[1]);
  p.levels = static_cast<int>(offsets[3]);
  p.points = static_cast<int>(offsets[4]);
  TOKENDETR_CHECK_ARGUMENT(level_shapes.size() == 2 * static_cast<size_t>(p.levels) && p.levels <= kMaxLevels,
                           "level_shapes has ", level_shapes.size() / 2, " levels, offsets are for ", p.levels);
  int64_t tokens = 0;
  for (int l = 0; l < p.levels; ++l) {
    p.level[l] = {level_shapes[2 * l], level_shapes[2 * l + 1], tokens};
    tokens += level_shapes[2 * l] * level_shapes[2 * l + 1];
  }
  TOKENDETR_CHECK_ARGUMENT(tokens == p.tokens, "level_shapes add up to ", tokens, " tokens, value has ", p.tokens);
  return p;
}

// One call of the node. Threads may compute its heads of images in any order.
class NodeCall {
 public:
  NodeCall(const Problem& problem, const void* value, const void* reference, int reference_width, const void* offsets,
           const void* logits, void* output)
      : problem_(problem), tensors_{value, offsets, logits, reference, reference_width}, output_(output) {
    copied_ = set_.copied_levels(problem_, Storage::kFloat32, kForwardCopies);
    bytes_ = set_.padded_bytes(problem_, Storage::kFloat32, copied_);
  }

  int64_t image_heads() const { return problem_.queries == 0 ? 0 : problem_.batch * problem_.heads; }

  void compute(int64_t image_head) const {
    const int64_t image = image_head / problem_.heads, head = image_head % problem_.heads;
    const Scratch padded_values(bytes_);
    const Copies copies{copied_, padded_values.data(), nullptr};
    set_.copy_padded(problem_, Storage::kFloat32, tensors_.value, image, head, copies);
    set_.forward(problem_, Storage::kFloat32, tensors_, image, head, 0, problem_.queries, copies, output_);
  }

 private:
  const Kernels& set_ = kernels();
  Problem problem_;
  Inputs tensors_;
  void* output_;
  LevelSet copied_;
  int64_t bytes_;
};

}  // namespace tokendetr
