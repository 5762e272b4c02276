// The casts of the operators' autocast rules.
#pragma once

#include <ATen/autocast_mode.h>

namespace tokendetr {

// What is stored in low precision; float64 stays.
template <c10::DeviceType kDevice>
at::Tensor cast_low(const at::Tensor& tensor) {
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(kDevice), tensor, kDevice);
}

// What stays in float32.
template <c10::DeviceType kDevice>
at::Tensor cast_wide(const at::Tensor& tensor) {
  return at::autocast::cached_cast(at::kFloat, tensor, kDevice);
}

}  // namespace tokendetr
