#include "../../common/isa.h"
#include "kernels.h"

namespace tokendetr::packed {

const Kernels& kernels() {
#if TOKENDETR_TILES
  if (has_tiles()) return kAmxKernels;
#endif
#if TOKENDETR_PAIRS
  if (has_pairs()) return kAvx512Bf16Kernels;
#endif
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return kAvx512Kernels;
  if (isa() == Isa::kAvx2) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace tokendetr::packed
