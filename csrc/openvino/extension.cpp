// What OpenVINO finds in the library: the operator, and the node of ONNX files that becomes it.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "ms_deform_attn.h"

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<tokendetr::MSDeformAttn>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<tokendetr::MSDeformAttn>>("MSDeformAttn", "tokendetr"),
}));
