// The schemas of the operators, their autocast rule, and the Python module that carries the library.
#include <ATen/core/dispatch/Dispatcher.h>
#include <Python.h>
#include <torch/library.h>

#include "../common/autocast.h"
#include "cpu/kernels.h"

namespace tokendetr {
namespace {

using at::Tensor;

// Under autocast values take the low precision; coordinates, weights and sums are float32.
template <c10::DispatchKey kKey, c10::DeviceType kDevice>
struct Autocast {
  static Tensor low(const Tensor& value) { return cast_low<kDevice>(value); }
  static Tensor wide(const Tensor& coordinates) { return cast_wide<kDevice>(coordinates); }

  static Tensor plain(const Tensor& value, c10::SymIntArrayRef level_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
    const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("tokendetr::ms_deform_attn", "")
                               .typed<Tensor(const Tensor&, c10::SymIntArrayRef, const Tensor&, const Tensor&)>();
    return op.call(low(value), level_shapes, wide(sampling_locations), wide(attention_weights));
  }

  static Tensor fused(const Tensor& value, c10::SymIntArrayRef level_shapes, const Tensor& reference_points,
                      const Tensor& sampling_offsets, const Tensor& attention_logits) {
    const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("tokendetr::ms_deform_attn_fused", "")
            .typed<Tensor(const Tensor&, c10::SymIntArrayRef, const Tensor&, const Tensor&, const Tensor&)>();
    return op.call(low(value), level_shapes, wide(reference_points), wide(sampling_offsets), wide(attention_logits));
  }

  static void add_to(torch::Library& library) {
    library.impl("ms_deform_attn", plain);
    library.impl("ms_deform_attn_fused", fused);
  }
};

TORCH_LIBRARY(tokendetr, library) {
  library.def(
      "ms_deform_attn(Tensor value, SymInt[] level_shapes, Tensor sampling_locations, Tensor attention_weights)"
      " -> Tensor");
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] level_shapes, Tensor sampling_locations,"
      " Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
  library.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] level_shapes, Tensor reference_points, Tensor sampling_offsets,"
      " Tensor attention_logits) -> Tensor");
  library.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] level_shapes, Tensor reference_points,"
      " Tensor sampling_offsets, Tensor attention_logits, bool wants_reference_gradient)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(tokendetr, AutocastCPU, library) {
  Autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>::add_to(library);
}
TORCH_LIBRARY_IMPL(tokendetr, AutocastCUDA, library) {
  Autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>::add_to(library);
}

}  // namespace
}  // namespace tokendetr

// tokendetr._C: importing it registers the operators; `device_types` says what they were compiled for, `cpu_isa` which
// instruction set the CPU kernels use.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                                   nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
#ifdef TOKENDETR_WITH_CUDA
  PyObject* types = Py_BuildValue("(ss)", "cpu", "cuda");
#else
  PyObject* types = Py_BuildValue("(s)", "cpu");
#endif
  if (PyModule_AddStringConstant(module, "cpu_isa", tokendetr::kernels().name) != 0 || types == nullptr ||
      PyModule_AddObject(module, "device_types", types) != 0) {
    Py_XDECREF(types);
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
