// The plain way to run multi-scale deformable attention, for comparison only: one thread per channel, scalar loads,
// every thread computing every location, scalar atomics, and one thread adding up a head's sums in the backward.
// float32 only.
#include "baseline.h"

namespace baseline {
namespace {

struct Corners {
  int offset[4];  // in pixels; < 0: outside
  float fx, fy;
};

__device__ bool locate(const Sizes& s, int level, const float* location, Corners& corners) {
  const int height = s.height[level], columns = s.columns[level];
  const float x = location[0] * columns - 0.5f, y = location[1] * height - 0.5f;
  if (!(x > -1 && y > -1 && x < columns && y < height)) return false;
  const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
  corners.fx = x - left;
  corners.fy = y - top;
  for (int c = 0; c < 4; ++c) {
    const int column = left + c % 2, line = top + c / 2;
    const bool inside = column >= 0 && column < columns && line >= 0 && line < height;
    corners.offset[c] = inside ? s.start[level] + line * columns + column : -1;
  }
  return true;
}

__global__ void forward_kernel(Sizes s, int64_t count, Inputs in, float* output) {
  const int64_t index = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (index >= count) return;
  const int64_t row = index / s.width;  // image, query, head
  const int channel = static_cast<int>(index % s.width), head = static_cast<int>(row % s.heads);
  const int64_t image = row / s.heads / s.queries;
  const float* values = in.value + (image * s.tokens * s.heads + head) * s.width + channel;
  float sum = 0;
  for (int i = 0; i < s.levels * s.points; ++i) {
    const int64_t sample = row * s.levels * s.points + i;
    Corners corners;
    if (!locate(s, i / s.points, in.locations + 2 * sample, corners)) continue;
    float sampled = 0;
    for (int c = 0; c < 4; ++c) {
      const float share = (c % 2 ? corners.fx : 1 - corners.fx) * (c / 2 ? corners.fy : 1 - corners.fy);
      if (corners.offset[c] >= 0) {
        sampled += share * values[static_cast<int64_t>(corners.offset[c]) * s.heads * s.width];
      }
    }
    sum += in.weights[sample] * sampled;
  }
  output[index] = sum;
}

// One block per (image, query, head), one thread per channel.
__global__ void backward_kernel(Sizes s, Inputs in, const float* incoming, Gradients to) {
  extern __shared__ float sums[];  // [3, width]
  const int64_t row = blockIdx.x;
  const int channel = threadIdx.x, head = static_cast<int>(row % s.heads);
  const int64_t image = row / s.heads / s.queries, step = static_cast<int64_t>(s.heads) * s.width;
  const int64_t first = (image * s.tokens * s.heads + head) * s.width + channel;
  const float g = incoming[row * s.width + channel];
  for (int i = 0; i < s.levels * s.points; ++i) {
    const int64_t sample = row * s.levels * s.points + i;
    const int level = i / s.points;
    float along_x = 0, along_y = 0, sampled = 0;
    Corners corners;
    if (locate(s, level, in.locations + 2 * sample, corners)) {
      for (int c = 0; c < 4; ++c) {
        if (corners.offset[c] < 0) continue;
        const float share_x = c % 2 ? corners.fx : 1 - corners.fx, share_y = c / 2 ? corners.fy : 1 - corners.fy;
        const float pixel = in.value[first + corners.offset[c] * step];
        sampled += share_x * share_y * pixel;
        along_x += (c % 2 ? pixel : -pixel) * share_y;
        along_y += (c / 2 ? pixel : -pixel) * share_x;
        atomicAdd(to.value + first + corners.offset[c] * step, share_x * share_y * in.weights[sample] * g);
      }
    }
    sums[channel] = along_x * g * in.weights[sample] * s.columns[level];
    sums[s.width + channel] = along_y * g * in.weights[sample] * s.height[level];
    sums[2 * s.width + channel] = sampled * g;
    __syncthreads();
    if (channel == 0) {
      float total[3] = {};
      for (int k = 0; k < 3; ++k) {
        for (int other = 0; other < s.width; ++other) total[k] += sums[k * s.width + other];
      }
      to.locations[2 * sample] = total[0];
      to.locations[2 * sample + 1] = total[1];
      to.weights[sample] = total[2];
    }
    __syncthreads();
  }
}

int64_t rows(const Sizes& s) { return static_cast<int64_t>(s.batch) * s.queries * s.heads; }

}  // namespace

cudaError_t forward(const Sizes& sizes, const Inputs& in, float* output, cudaStream_t stream) {
  constexpr int kThreads = 1024;
  const int64_t count = rows(sizes) * sizes.width;
  const unsigned blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  forward_kernel<<<blocks, kThreads, 0, stream>>>(sizes, count, in, output);
  return cudaGetLastError();
}

cudaError_t backward(const Sizes& sizes, const Inputs& in, const float* incoming, const Gradients& to,
                     cudaStream_t stream) {
  const size_t shared = 3 * static_cast<size_t>(sizes.width) * sizeof(float);
  backward_kernel<<<static_cast<unsigned>(rows(sizes)), sizes.width, shared, stream>>>(sizes, in, incoming, to);
  return cudaGetLastError();
}

}  // namespace baseline
