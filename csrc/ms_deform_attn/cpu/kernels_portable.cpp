// The kernels compiled for portable. Everything that contains code is included after the target is set and lives in a
// namespace of its own, so that no function compiled here can be picked by the linker for another processor.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"

#define TOKENDETR_ISA portable
#define TOKENDETR_VECTOR_BYTES 16
#include "unit.h"

namespace tokendetr {

extern const Kernels kPortableKernels = {
    "portable",           portable::reads_in_place, portable::map_bytes, portable::gradient_map_bytes,
    portable::copy_map, portable::forward,        portable::backward,
};

}  // namespace tokendetr
