// The kernels of processors with tiles (AMX).
#include "kernels.h"

#if TOKENDETR_TILES
#include "../../common/cpu/begin_amx.h"
#include "../../common/cpu/simd.h"
#include "../../common/cpu/lanes.h"
#include "rows.h"
#include "keys.h"
#include "softmax.h"
#include "pairs.h"
#include "tiles.h"

namespace tokendetr::packed {

using Tiled = amx::packed::PairKernels<amx::packed::Tiles>;

extern const Kernels kAmxKernels = {Tiled::forward_bytes, Tiled::backward_bytes, Tiled::forward, Tiled::backward};

}  // namespace tokendetr::packed

#include "../../common/cpu/end_target.h"
#endif
