// The kernels compiled for avx2.
#if defined(__x86_64__)
#include "kernels.h"

#include "../../common/cpu/begin_avx2.h"
#include "kernel_table.h"

namespace tokendetr::packed {

extern const Kernels kAvx2Kernels = {avx2::packed::forward_bytes, avx2::packed::backward_bytes, avx2::packed::forward,
                                     avx2::packed::backward};

}  // namespace tokendetr::packed

#include "../../common/cpu/end_target.h"
#endif
