// The schemas of packed attention and its autocast rule.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>

#include "../common/autocast.h"

namespace tokendetr {
namespace {

using at::Tensor;
using Optional = const std::optional<Tensor>&;

// Under autocast queries, keys and values take the low precision; biases and sums are float32.
template <c10::DispatchKey kKey, c10::DeviceType kDevice>
Tensor autocast(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& segment, double scale,
                Optional position, Optional bias_table, Optional key_bias) {
  const c10::impl::ExcludeDispatchKeyGuard guard(kKey);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("tokendetr::packed_attention", "")
          .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, Optional, Optional,
                        Optional)>();
  const auto wide = [](Optional tensor) {
    return tensor.has_value() ? std::optional<Tensor>(cast_wide<kDevice>(*tensor)) : std::nullopt;
  };
  return op.call(cast_low<kDevice>(query), cast_low<kDevice>(key), cast_low<kDevice>(value), segment, scale, position,
                 wide(bias_table), wide(key_bias));
}

TORCH_LIBRARY_FRAGMENT(tokendetr, library) {
  library.def(
      "packed_attention(Tensor query, Tensor key, Tensor value, Tensor segment, float scale, Tensor? position,"
      " Tensor? bias_table, Tensor? key_bias) -> Tensor");
  library.def(
      "packed_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor segment,"
      " float scale, Tensor? position, Tensor? bias_table, Tensor? key_bias, bool wants_table_gradient,"
      " bool wants_key_bias_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(tokendetr, AutocastCPU, library) {
  library.impl("packed_attention", autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(tokendetr, AutocastCUDA, library) {
  library.impl("packed_attention", autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}

}  // namespace
}  // namespace tokendetr
