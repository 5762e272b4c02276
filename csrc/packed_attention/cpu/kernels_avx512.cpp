// The kernels compiled for avx512. Everything that contains code is included after the target is set and lives in a
// namespace of its own, so that no function compiled here can be picked by the linker for another processor.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define TOKENDETR_ISA avx512
#define TOKENDETR_VECTOR_BYTES 64
#include "unit.h"

namespace tokendetr::packed {

extern const Kernels kAvx512Kernels = {avx512::packed::forward_bytes, avx512::packed::backward_bytes, avx512::packed::forward, avx512::packed::backward};

}  // namespace tokendetr::packed

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
