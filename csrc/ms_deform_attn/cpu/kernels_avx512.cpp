// The kernels compiled for avx512.
#if defined(__x86_64__)
#include "kernels.h"

#include "../../common/cpu/begin_avx512.h"
#include "kernel_table.h"

namespace tokendetr {

extern const Kernels kAvx512Kernels = {
    "avx512",        avx512::copied_levels, avx512::padded_bytes, avx512::padded_gradient_bytes, avx512::copy_padded,
    avx512::forward, avx512::backward,
};

}  // namespace tokendetr

#include "../../common/cpu/end_target.h"
#endif
