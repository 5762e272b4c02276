// The kernels of processors with AVX-512 for bfloat16.
#include "kernels.h"

#if TOKENDETR_PAIRS
#include "../../common/cpu/begin_avx512_bf16.h"
#include "../../common/cpu/simd.h"
#include "../../common/cpu/lanes.h"
#include "products.h"
#include "rows.h"
#include "keys.h"
#include "softmax.h"
#include "pairs.h"
#include "vectors_of_pairs.h"

namespace tokendetr::packed {

using Paired = avx512_bf16::packed::PairKernels<avx512_bf16::packed::VectorsOfPairs>;

extern const Kernels kAvx512Bf16Kernels = {Paired::forward_bytes, Paired::backward_bytes, Paired::forward,
                                           Paired::backward};

}  // namespace tokendetr::packed

#include "../../common/cpu/end_target.h"
#endif
