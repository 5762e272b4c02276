#include "ms_deform_attn.h"

#include <memory>
#include <utility>

#include <oneapi/tbb/parallel_for.h>

#include "../common/scratch.h"
#include "../ms_deform_attn/cpu/kernels.h"

namespace tokendetr {
namespace {

// From this many samples per token of a head on, copying the head's values pays (see ms_deform_attn/cpu/ops.cpp).
constexpr double kCopies = 1.0;

Problem problem_of(const ov::TensorVector& inputs, const std::vector<int64_t>& level_shapes) {
  const ov::Shape value = inputs[0].get_shape(), offsets = inputs[2].get_shape();
  Problem p{};
  p.batch = static_cast<int64_t>(value[0]);
  p.tokens = static_cast<int64_t>(value[1]);
  p.heads = static_cast<int64_t>(value[2]);
  p.width = static_cast<int64_t>(value[3]);
  p.queries = static_cast<int64_t>(offsets[1]);
  p.levels = static_cast<int>(offsets[3]);
  p.points = static_cast<int>(offsets[4]);
  int64_t tokens = 0;
  for (int l = 0; l < p.levels; ++l) {
    p.level[l] = {level_shapes[2 * l], level_shapes[2 * l + 1], tokens};
    tokens += level_shapes[2 * l] * level_shapes[2 * l + 1];
  }
  TOKENDETR_CHECK_ARGUMENT(tokens == p.tokens, "level_shapes add up to ", tokens, " tokens, value has ", p.tokens);
  return p;
}

}  // namespace

MSDeformAttn::MSDeformAttn(const ov::OutputVector& inputs, std::vector<int64_t> level_shapes)
    : Op(inputs), level_shapes_(std::move(level_shapes)) {
  constructor_validate_and_infer_types();
}

void MSDeformAttn::validate_and_infer_types() {
  NODE_VALIDATION_CHECK(this, get_input_size() == 4, "needs value, reference points, offsets and logits, got ",
                        get_input_size(), " inputs");
  const size_t numbers = level_shapes_.size();
  NODE_VALIDATION_CHECK(this, numbers >= 2 && numbers % 2 == 0 && numbers / 2 <= static_cast<size_t>(kMaxLevels),
                        "level_shapes must have 1 to ", kMaxLevels, " (height, width) pairs");
  for (size_t i = 0; i < 4; ++i) {
    const ov::element::Type type = get_input_element_type(i);
    NODE_VALIDATION_CHECK(this, type.is_dynamic() || type == ov::element::f32, "input ", i, " must be float32, got ",
                          type);
  }
  const ov::PartialShape value = get_input_partial_shape(0), reference = get_input_partial_shape(1),
                         offsets = get_input_partial_shape(2), logits = get_input_partial_shape(3);
  NODE_VALIDATION_CHECK(this,
                        value.rank().compatible(4) && reference.rank().compatible(4) && offsets.rank().compatible(6) &&
                            logits.rank().compatible(5),
                        "inputs must have 4, 4, 6 and 5 dimensions");
  ov::PartialShape output{ov::Dimension::dynamic(), ov::Dimension::dynamic(), ov::Dimension::dynamic()};
  if (value.rank().is_static() && offsets.rank().is_static()) {
    NODE_VALIDATION_CHECK(this, offsets[3].compatible(static_cast<int64_t>(numbers / 2)), "offsets are for ",
                          offsets[3], " levels, level_shapes has ", numbers / 2);
    output = {value[0], offsets[1], value[2] * value[3]};
  }
  set_output_type(0, ov::element::f32, output);
}

std::shared_ptr<ov::Node> MSDeformAttn::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  return std::make_shared<MSDeformAttn>(inputs, level_shapes_);
}

bool MSDeformAttn::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("level_shapes", level_shapes_);
  return true;
}

bool MSDeformAttn::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  const Problem p = problem_of(inputs, level_shapes_);
  outputs[0].set_shape(
      ov::Shape{static_cast<size_t>(p.batch), static_cast<size_t>(p.queries), static_cast<size_t>(p.heads * p.width)});
  if (p.batch == 0 || p.queries == 0) return true;
  const Inputs tensors{inputs[0].data(), inputs[2].data(), inputs[3].data(), inputs[1].data(),
                       static_cast<int>(inputs[1].get_shape()[3])};
  void* output = outputs[0].data();
  const Kernels& set = kernels();
  const bool in_place = set.reads_in_place(p, Storage::kFloat32) &&
                        static_cast<double>(p.queries) * p.samples() < kCopies * static_cast<double>(p.tokens);
  const int64_t bytes = in_place ? 0 : set.padded_bytes(p, Storage::kFloat32);
  // OpenVINO's own threads: the number that the model was compiled for.
  tbb::parallel_for<int64_t>(0, p.batch * p.heads, [&](int64_t image_head) {
    const int64_t image = image_head / p.heads, head = image_head % p.heads;
    const Scratch padded_values(bytes);
    if (!in_place) set.copy_padded(p, Storage::kFloat32, tensors.value, image, head, padded_values.data());
    set.forward(p, Storage::kFloat32, tensors, image, head, 0, p.queries, in_place ? nullptr : padded_values.data(),
                output);
  });
  return true;
}

}  // namespace tokendetr
