// The division of rows among warps.
//
// A tile is the neighboring rows (slots of a head) of a warp. The last tile of a head may be partial: its missing rows
// keep their lanes, because shuffles need all lanes, but belong to no segment (Row::exists is false), so that they
// attend to nothing and write nothing.
#pragma once

#include "tensors.h"

namespace tokendetr::packed::cuda {

constexpr int kWarp = 32;

// Channels that a lane owns: as many as its registers hold.
constexpr int channels_per_lane(Storage storage) { return storage == Storage::kFloat64 ? 8 : 16; }

inline Work work_of(const Problem& problem, Storage storage, bool shares_table) {
  Work work{1, 0, problem.containers, 1, 0};
  while (work.lanes * channels_per_lane(storage) < problem.width) work.lanes *= 2;
  const int64_t rows = kWarp / work.lanes;
  work.tiles = (problem.slots + rows - 1) / rows;
  if (shares_table) {  // parts of a table gradient: enough for a GPU, in about 64 MiB at most
    const int64_t table = problem.heads * problem.side() * problem.side();
    int64_t most = (int64_t{1} << 24) / (table * work.tiles);
    most = most < 1 ? 1 : most > 1024 ? 1024 : most;
    work.run_length = (problem.containers + most - 1) / most;
    work.runs = (problem.containers + work.run_length - 1) / work.run_length;
  }
  work.items = work.runs * problem.heads * work.tiles;
  return work;
}

}  // namespace tokendetr::packed::cuda
