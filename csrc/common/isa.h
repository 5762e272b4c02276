// The instruction sets that CPU kernels are compiled for, and which of them this process uses.
#pragma once

namespace tokendetr {

enum class Isa { kPortable, kAvx2, kAvx512 };

// The best set this processor runs; the environment variable TOKENDETR_CPU_ISA (avx512, avx2, portable) lowers it.
Isa isa();

}  // namespace tokendetr
