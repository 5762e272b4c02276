#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace tokendetr {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("TOKENDETR_CPU_ISA");
  const bool portable = wanted != nullptr && std::strcmp(wanted, "portable") == 0;
  const bool avx2_at_most = portable || (wanted != nullptr && std::strcmp(wanted, "avx2") == 0);
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !avx2_at_most) return Isa::kAvx512;
  if (has_avx2 && !portable) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

}  // namespace

Isa isa() {
  static const Isa chosen = best_isa();
  return chosen;
}

}  // namespace tokendetr
