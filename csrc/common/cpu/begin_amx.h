// Begins code that is compiled for processors with tiles (AMX) for products in bfloat16, up to end_target.h: see
// begin_avx512.h. It has AVX-512 beside them.
#pragma once

#include "system_headers.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
#endif

#define TOKENDETR_ISA amx
#define TOKENDETR_VECTOR_BYTES 64
#define TOKENDETR_ROUNDS_BFLOAT16 1
