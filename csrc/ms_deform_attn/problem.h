// The sizes of one multi-scale deformable attention call, free of torch types: shared by the CPU and CUDA kernels.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TOKENDETR_BOTH_SIDES __host__ __device__
#else
#define TOKENDETR_BOTH_SIDES
#endif

namespace tokendetr {

constexpr int kMaxLevels = 16;
constexpr int kMaxSamples = 256;  // levels * points

struct Level {
  int64_t height;
  int64_t width;
  int64_t start;  // index of its first token
};

// B images, N tokens (all levels), M heads, D channels per head, Q queries, L levels, P points.
struct Problem {
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t width;
  int64_t queries;
  int levels;
  int points;
  Level level[kMaxLevels];

  TOKENDETR_BOTH_SIDES int samples() const { return levels * points; }
};

}  // namespace tokendetr
