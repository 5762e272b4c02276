// The instruction sets that CPU kernels are compiled for, and the one that this process uses.
//
// One library holds the kernels of every set, so that one build runs on any x86-64 processor at its full width.
// Each set is compiled in a file of its own (kernels_avx2.cpp, ...), which defines a table of functions, and
// dispatch.cpp returns the table of isa(). Results of the sets may differ by rounding.
#pragma once

namespace tokendetr {

enum class Isa { kPortable, kAvx2, kAvx512 };

// The best set that this processor runs, chosen once per process. The environment variable TOKENDETR_CPU_ISA (amx,
// avx512_bf16, avx512, avx2, portable) lowers it, for tests and comparisons.
Isa isa();

// True if the processor has AVX-512 and multiplies pairs of bfloat16 by it.
bool has_pairs();

// True if it also multiplies them in tiles (AMX), and this process may: Linux is asked once.
bool has_tiles();

}  // namespace tokendetr
