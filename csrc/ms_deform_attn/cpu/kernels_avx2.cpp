// The kernels compiled for avx2.
#if defined(__x86_64__)
#include "kernels.h"

#include "../../common/cpu/begin_avx2.h"
#include "kernel_table.h"

namespace tokendetr {

extern const Kernels kAvx2Kernels = {
    "avx2",        avx2::copied_levels, avx2::padded_bytes, avx2::padded_gradient_bytes, avx2::copy_padded,
    avx2::forward, avx2::backward,
};

}  // namespace tokendetr

#include "../../common/cpu/end_target.h"
#endif
