// Begins code that is compiled for AVX-512 with products and conversions of bfloat16, up to end_target.h: see
// begin_avx512.h.
#pragma once

#include "system_headers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

#define TOKENDETR_ISA avx512_bf16
#define TOKENDETR_VECTOR_BYTES 64
#define TOKENDETR_ROUNDS_BFLOAT16 1
