// The kernels compiled for portable.
#include "kernels.h"

#include "../../common/cpu/begin_portable.h"
#include "kernel_table.h"

namespace tokendetr {

extern const Kernels kPortableKernels = {
    "portable",
    portable::copied_levels,
    portable::padded_bytes,
    portable::padded_gradient_bytes,
    portable::copy_padded,
    portable::forward,
    portable::backward,
};

}  // namespace tokendetr
