#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace tokendetr {
namespace {

const Kernels& best_kernels() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("TOKENDETR_CPU_ISA");
  const bool portable = wanted != nullptr && std::strcmp(wanted, "portable") == 0;
  const bool avx2_at_most = portable || (wanted != nullptr && std::strcmp(wanted, "avx2") == 0);
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !avx2_at_most) return kAvx512Kernels;
  if (has_avx2 && !portable) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = best_kernels();
  return chosen;
}

}  // namespace tokendetr
