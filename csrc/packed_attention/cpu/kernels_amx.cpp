// The kernels of processors with tiles: the forward in bfloat16 uses them, all else is that of AVX-512.
#include "kernels.h"

#if TOKENDETR_TILES
#include "../../common/cpu/begin_amx.h"
#include "../../common/cpu/simd.h"
#include "../../common/cpu/lanes.h"
#include "rows.h"
#include "keys.h"
#include "softmax.h"
#include "tiles.h"

namespace tokendetr::packed {
namespace {

using amx::packed::TileScratch;

bool fits_tiles(const Problem& problem, Storage storage) {
  return storage == Storage::kBFloat16 && problem.width % amx::packed::kTileDepth == 0;
}

int64_t forward_bytes(const Problem& problem, Storage storage, int64_t longest) {
  if (!fits_tiles(problem, storage)) return kAvx512Kernels.forward_bytes(problem, storage, longest);
  return TileScratch(problem, longest, true, nullptr).carver.bytes();
}

int64_t backward_bytes(const Problem& problem, Storage storage, int64_t longest) {
  return kAvx512Kernels.backward_bytes(problem, storage, longest);
}

void forward(const Problem& problem, Storage storage, const Inputs& in, const Segments& segments, int64_t container,
             const Heads& heads, void* memory, const Write& output) {
  if (!fits_tiles(problem, storage)) {
    return kAvx512Kernels.forward(problem, storage, in, segments, container, heads, memory, output);
  }
  TileScratch scratch(problem, segments.longest(), in.table != nullptr, memory);
  const amx::packed::Tiles tiles;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int32_t begin = segments.starts[s];
    amx::packed::forward_tile_segment(problem, in, container, heads, segments.slots + begin,
                                      segments.starts[s + 1] - begin, scratch, output);
  }
}

void backward(const Problem& problem, Storage storage, const Inputs& in, const Segments& segments, int64_t container,
              const Heads& heads, void* memory, const Gradients& gradients) {
  kAvx512Kernels.backward(problem, storage, in, segments, container, heads, memory, gradients);
}

}  // namespace

extern const Kernels kAmxKernels = {forward_bytes, backward_bytes, forward, backward};

}  // namespace tokendetr::packed

#include "../../common/cpu/end_target.h"
#endif
