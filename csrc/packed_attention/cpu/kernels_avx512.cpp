// The kernels compiled for avx512.
#if defined(__x86_64__)
#include "kernels.h"

#include "../../common/cpu/begin_avx512.h"
#include "kernel_table.h"

namespace tokendetr::packed {

extern const Kernels kAvx512Kernels = {avx512::packed::forward_bytes, avx512::packed::backward_bytes,
                                       avx512::packed::forward, avx512::packed::backward};

}  // namespace tokendetr::packed

#include "../../common/cpu/end_target.h"
#endif
