// The kernels compiled for portable.
#include "kernels.h"

#include "../../common/cpu/begin_portable.h"
#include "unit.h"

namespace tokendetr {

extern const Kernels kPortableKernels = {
    "portable",         portable::reads_in_place, portable::map_bytes, portable::gradient_map_bytes,
    portable::copy_map, portable::forward,        portable::backward,
};

}  // namespace tokendetr
