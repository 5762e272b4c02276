// The library's entry point for OpenVINO: the operator, and the ONNX node that is converted to it.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "ms_deform_attn.h"

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<tokendetr::MSDeformAttn>>(),
    std::make_shared<ov::frontend::onnx::OpExtension<tokendetr::MSDeformAttn>>("MSDeformAttn", "tokendetr"),
}));
