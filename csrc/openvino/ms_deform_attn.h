// The node tokendetr::MSDeformAttn: deformable attention from reference points, raw offsets and logits.
#pragma once

#include <cstdint>
#include <vector>

#include <openvino/op/op.hpp>

namespace tokendetr {

// Its inputs and its attribute are told in ../ms_deform_attn/cpu/node.h.
class MSDeformAttn : public ov::op::Op {
 public:
  OPENVINO_OP("MSDeformAttn", "tokendetr");

  MSDeformAttn() = default;
  MSDeformAttn(const ov::OutputVector& inputs, std::vector<int64_t> level_shapes);

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
  bool has_evaluate() const override { return true; }

 private:
  std::vector<int64_t> level_shapes_;
};

}  // namespace tokendetr
