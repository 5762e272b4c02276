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

namespace tokendetr {

extern const Kernels kAvx512Kernels = {
    "avx512",           avx512::reads_in_place, avx512::map_bytes, avx512::gradient_map_bytes,
    avx512::copy_map, avx512::forward,        avx512::backward,
};

}  // namespace tokendetr

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
