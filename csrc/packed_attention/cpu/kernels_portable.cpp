// The kernels compiled for portable.
#include "kernels.h"

#include "../../common/cpu/begin_portable.h"
#include "kernel_table.h"

namespace tokendetr::packed {

extern const Kernels kPortableKernels = {portable::packed::forward_bytes, portable::packed::backward_bytes,
                                         portable::packed::forward, portable::packed::backward};

}  // namespace tokendetr::packed
