#include "../../common/isa.h"
#include "kernels.h"

namespace tokendetr {

const Kernels& kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx512) return kAvx512Kernels;
  if (isa() == Isa::kAvx2) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace tokendetr
