// The library's one registration: schemas, the kernels of each device, and what the library says about itself.
//
// It has no Python symbols: torch.ops.load_library loads it in Python, dlopen or a link flag in C++. Fake kernels,
// autograd and autocast are registered in Python, see tokendetr/ops/*/registration.py.
#include "common/isa.h"
#include "common/stable_abi.h"
#include "ms_deform_attn/cpu/kernels.h"
#include "ms_deform_attn/registration.h"
#include "packed_attention/registration.h"
#include "token_merging/registration.h"

namespace {

// To be raised whenever a schema changes: tokendetr.ops uses no library of another number.
constexpr int kInterface = 1;

}  // namespace

STABLE_TORCH_LIBRARY(tokendetr, library) {
  library.def(
      "ms_deform_attn(Tensor value, SymInt[] level_shapes, Tensor sampling_locations, Tensor attention_weights)"
      " -> Tensor");
  library.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] level_shapes, Tensor sampling_locations,"
      " Tensor attention_weights, bool deterministic=False) -> (Tensor, Tensor, Tensor)");
  library.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] level_shapes, Tensor reference_points, Tensor sampling_offsets,"
      " Tensor attention_logits) -> Tensor");
  library.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] level_shapes, Tensor reference_points,"
      " Tensor sampling_offsets, Tensor attention_logits, bool wants_reference_gradient, bool deterministic=False)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "packed_attention(Tensor query, Tensor key, Tensor value, Tensor segment, float scale, Tensor? position,"
      " Tensor? bias_table, Tensor? key_bias) -> Tensor");
  library.def(
      "packed_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor segment,"
      " float scale, Tensor? position, Tensor? bias_table, Tensor? key_bias, bool wants_table_gradient,"
      " bool wants_key_bias_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("token_similarity(Tensor x, Tensor token, int[] number, int[] cells, int start) -> (Tensor, Tensor)");
  library.def(
      "plan_merge(Tensor valid, int length, Tensor? score, Tensor? token, int[] number, int[] cells, int[] counts,"
      " Tensor? cosine, Tensor? order, Tensor? level_valid, Tensor? level_score, int[] level_counts,"
      " int[] important_counts, int neighbors, float min_cosine, bool absorbs)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "merge_tokens(Tensor x, Tensor index, Tensor member, int[] cells, int[] number, Tensor window_slot,"
      " Tensor? neighbor, Tensor? absorbs, Tensor absorber, Tensor absorber_slot, int start, bool mean) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tokendetr, CPU, library) {
  tokendetr::add_cpu_operators(library);
  tokendetr::packed::add_cpu_operators(library);
  tokendetr::merging::add_cpu_operators(library);
}

#ifdef TOKENDETR_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokendetr, CUDA, library) {
  tokendetr::add_cuda_operators(library);
  tokendetr::packed::add_cuda_operators(library);
}
#endif

#define TOKENDETR_EXPORT __attribute__((visibility("default")))

extern "C" {

// The number of the schemas, see above.
TOKENDETR_EXPORT int tokendetr_interface() { return kInterface; }

// The instruction set that the CPU kernels use in this process.
TOKENDETR_EXPORT const char* tokendetr_cpu_isa() {
  if (tokendetr::has_tiles()) return "amx";
  return tokendetr::has_pairs() ? "avx512_bf16" : tokendetr::kernels().name;
}

TOKENDETR_EXPORT int tokendetr_has_cuda() {
#ifdef TOKENDETR_WITH_CUDA
  return 1;
#else
  return 0;
#endif
}

}  // extern "C"
