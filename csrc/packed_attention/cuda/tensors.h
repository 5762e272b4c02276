// Outputs of the CUDA kernels' backward, free of torch and CUDA types.
#pragma once

#include "../problem.h"

namespace tokendetr::packed::cuda {

struct Gradients {
  Read output;              // the incoming gradient
  Write query, key, value;  // all written, zeros for padding
  void* statistics;         // [G, M, T, 3], type of the sums: written by queries for keys
  void* table;              // [parts, M, 2R + 1, 2R + 1], zeroed, type of the sums, or null
  void* key_bias;           // [G, M, T], all written, type of the sums, or null
};

// The division of rows (slots of a head) among warps.
struct Work {
  int32_t lanes;                                  // per row, a power of two
  int64_t tiles;                                  // of neighboring rows, per head of a container
  int64_t runs;                                   // of neighboring containers
  int64_t run_length;                             // containers per run
  int64_t items;                                  // one warp's work: a tile of a head in each container of a run
  int64_t parts() const { return runs * tiles; }  // of a table gradient, summed apart
};

}  // namespace tokendetr::packed::cuda
