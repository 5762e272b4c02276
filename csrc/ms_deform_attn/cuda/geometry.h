// The sizes of a call as the kernels use them, and the order in which a grid walks over the queries.
//
// Blocks are persistent, one per multiprocessor, and each walks over a contiguous range of (image, head, chunk of 64
// queries), all its warps close to each other: the kernel is limited by how often a pixel is found in the L1 cache, and
// neighboring queries of one head sample the same pixels. If the queries are the tokens themselves (the encoder), a
// chunk is a tile of 8 x 8 of them and tiles follow each other down bands four tiles high; else a chunk is 64 queries
// in their order. The order changes no result.
//
// Tiles at the right and lower border of a level may be partial, and so may the last chunk of queries. Their missing
// queries keep their lanes, marked as not `real`: all lanes of a warp have to reach its shuffles and barriers. They
// take the addresses of query 0, which are valid, have their samples outside of every level, and write nothing.
#pragma once

#include "../problem.h"
#include "../../common/cuda/device.h"

namespace tokendetr::cuda {

constexpr int kTile = 8;
constexpr int kChunk = kTile * kTile;
constexpr int kBand = 4;
constexpr int kWarp = 32;

struct LevelGeometry {
  int32_t height, width;
  int32_t start;        // its first token
  int32_t first_chunk;  // its first tile
  int32_t first_cell;   // see cells_per_head()
  int32_t tiles_x, tiles_y;
};

struct Geometry {
  int64_t tokens, queries, image_heads, chunks;  // image_heads: images times heads; chunks: of one image's head
  int64_t row;                                   // elements per token: heads times width
  int32_t heads, width, levels, points, samples;
  int32_t cells;  // of one head
  bool tiled;
  LevelGeometry level[kMaxLevels];
};

inline Geometry geometry_of(const Problem& problem) {
  Geometry g{};
  g.tokens = problem.tokens;
  g.queries = problem.queries;
  g.image_heads = problem.batch * problem.heads;
  g.row = problem.heads * problem.width;
  g.heads = static_cast<int32_t>(problem.heads);
  g.width = static_cast<int32_t>(problem.width);
  g.levels = problem.levels;
  g.points = problem.points;
  g.samples = problem.samples();
  int32_t chunks = 0;
  for (int l = 0; l < problem.levels; ++l) {
    LevelGeometry& level = g.level[l];
    level.height = static_cast<int32_t>(problem.level[l].height);
    level.width = static_cast<int32_t>(problem.level[l].width);
    level.start = static_cast<int32_t>(problem.level[l].start);
    level.tiles_x = (level.width + kTile - 1) / kTile;
    level.tiles_y = (level.height + kTile - 1) / kTile;
    level.first_chunk = chunks;
    level.first_cell = g.cells;
    chunks += level.tiles_x * level.tiles_y;
    g.cells += (level.height + 1) * (level.width + 1);
  }
  g.tiled = problem.queries == problem.tokens;
  g.chunks = g.tiled ? chunks : (problem.queries + kChunk - 1) / kChunk;
  return g;
}

// One query of one head of one image; `real` is false for a query that a partial tile lacks.
struct Place {
  int32_t image, head;
  int64_t query;
  bool real;
};

template <int kGroups>  // queries that a warp handles at once
class Walk {
  static constexpr int kSteps = kChunk / kGroups;  // of a warp per chunk

 public:
  TOKENDETR_DEVICE Walk(const Geometry& geometry, const Thread& thread) : geometry_(geometry), stride_(thread.warps) {
    const int64_t steps = geometry.image_heads * geometry.chunks * kSteps;
    at_ = steps * thread.block / thread.blocks + thread.warp;
    end_ = steps * (thread.block + 1) / thread.blocks;
    image_head_ = static_cast<uint32_t>(at_ / kSteps / geometry.chunks);
    chunk_ = at_ / kSteps - image_head_ * geometry.chunks;
  }

  TOKENDETR_DEVICE bool more() const { return at_ < end_; }

  TOKENDETR_DEVICE void next() {
    const int64_t chunks_before = at_ / kSteps;
    at_ += stride_;
    chunk_ += at_ / kSteps - chunks_before;
    for (; chunk_ >= geometry_.chunks; chunk_ -= geometry_.chunks) ++image_head_;
  }

  TOKENDETR_DEVICE Place place(int group) const {
    const uint32_t heads = static_cast<uint32_t>(geometry_.heads);
    const uint32_t image = image_head_ / heads;
    Place place{static_cast<int32_t>(image), static_cast<int32_t>(image_head_ - image * heads), 0, true};
    const int slot = static_cast<int>(at_ % kSteps) * kGroups + group;
    if (geometry_.tiled) {
      place_in_tile(slot, place);
    } else {
      place.query = chunk_ * kChunk + slot;
      place.real = place.query < geometry_.queries;
    }
    if (!place.real) place.query = 0;
    return place;
  }

 private:
  TOKENDETR_DEVICE void place_in_tile(int slot, Place& place) const {
    const int32_t chunk = static_cast<int32_t>(chunk_);
    int l = geometry_.levels - 1;
    while (l > 0 && chunk < geometry_.level[l].first_chunk) --l;
    const LevelGeometry& level = geometry_.level[l];
    const uint32_t tile = static_cast<uint32_t>(chunk - level.first_chunk);
    const uint32_t band = tile / static_cast<uint32_t>(kBand * level.tiles_x);
    const uint32_t in_band = tile - band * static_cast<uint32_t>(kBand * level.tiles_x);
    const uint32_t left = static_cast<uint32_t>(level.tiles_y) - band * kBand;
    const uint32_t high = left < kBand ? left : kBand;
    const uint32_t tile_x = in_band / high;
    const int32_t x = static_cast<int32_t>(tile_x) * kTile + slot % kTile;
    const int32_t y = static_cast<int32_t>(band * kBand + in_band - tile_x * high) * kTile + slot / kTile;
    place.real = x < level.width && y < level.height;
    place.query = level.start + y * level.width + x;
  }

  const Geometry& geometry_;
  int64_t at_, end_, chunk_;
  uint32_t image_head_;
  int stride_;
};

}  // namespace tokendetr::cuda
