// Starts what is compiled for avx2, up to end_target.h. Headers that contain code and are not ours come before it; ours
// come after it and put their code into a namespace named after the set, so that no function compiled here can be
// picked by the linker for another processor.
#pragma once

#include "system_headers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define TOKENDETR_ISA avx2
#define TOKENDETR_VECTOR_BYTES 32
