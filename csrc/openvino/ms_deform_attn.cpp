#include "ms_deform_attn.h"

#include <memory>
#include <utility>

#include <oneapi/tbb/parallel_for.h>

#include "../ms_deform_attn/cpu/node.h"

namespace tokendetr {

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
  const ov::Shape reference = inputs[1].get_shape();
  const Problem p = node_problem(inputs[0].get_shape(), reference, inputs[2].get_shape(), level_shapes_);
  outputs[0].set_shape(
      ov::Shape{static_cast<size_t>(p.batch), static_cast<size_t>(p.queries), static_cast<size_t>(p.heads * p.width)});
  const NodeCall call(p, inputs[0].data(), inputs[1].data(), static_cast<int>(reference[3]), inputs[2].data(),
                      inputs[3].data(), outputs[0].data());
  // OpenVINO's own threads: the number that the model was compiled for.
  tbb::parallel_for<int64_t>(0, call.image_heads(), [&](int64_t image_head) { call.compute(image_head); });
  return true;
}

}  // namespace tokendetr
