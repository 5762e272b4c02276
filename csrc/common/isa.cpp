#include "isa.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace tokendetr {
namespace {

bool is_wanted(const char* set) {
  const char* wanted = std::getenv("TOKENDETR_CPU_ISA");
  return wanted != nullptr && std::strcmp(wanted, set) == 0;
}

Isa best_isa() {
#if defined(__x86_64__)
  const bool portable = is_wanted("portable"), avx2_at_most = portable || is_wanted("avx2");
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

bool find_pairs() {
#if defined(__x86_64__)
  if (isa() != Isa::kAvx512 || is_wanted("avx512")) return false;
  constexpr unsigned kVectorsOfBFloat16 = 1u << 5;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kVectorsOfBFloat16) != 0;
#else
  return false;
#endif
}

bool find_tiles() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  if (!has_pairs() || is_wanted("avx512_bf16")) return false;
  constexpr unsigned kTiles = 1u << 24 | 1u << 22;  // tiles, and their products of bfloat16
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTiles) != kTiles) return false;
  constexpr int kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_pairs() {
  static const bool found = find_pairs();
  return found;
}

bool has_tiles() {
  static const bool found = find_tiles();
  return found;
}

Isa isa() {
  static const Isa chosen = best_isa();
  return chosen;
}

}  // namespace tokendetr
