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

namespace tokendetr::packed {

extern const Kernels kPortableKernels = {portable::packed::forward_bytes, portable::packed::backward_bytes, portable::packed::forward, portable::packed::backward};

}  // namespace tokendetr::packed
