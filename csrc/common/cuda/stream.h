// A device's stream and the errors of the CUDA runtime.
#pragma once

#ifndef USE_CUDA
#define USE_CUDA  // so that the stable ABI declares its functions for streams
#endif

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "../tensors.h"

namespace tokendetr {

using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_status(const char* op, const char* what, cudaError_t status) {
  TOKENDETR_CHECK(status == cudaSuccess, op, ": ", what, " failed: ", cudaGetErrorString(status));
}

}  // namespace tokendetr
