// Begins code that is compiled for AVX-512, up to end_target.h. Foreign headers that contain code are included before
// it. Ours are included after it and put their code into a namespace named after the set: of an inline function or
// template that several files compile under one name, the linker keeps one copy, which could be this one, for every
// processor.
#pragma once

#include "system_headers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define TOKENDETR_ISA avx512
#define TOKENDETR_VECTOR_BYTES 64
