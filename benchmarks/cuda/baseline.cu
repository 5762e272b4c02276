// The plain way to run multi-scale deformable attention, for comparison only: one thread per channel, scalar loads, every
// thread computing every location, scalar atomics, and one thread adding up a head's sums in the backward. float32 only.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

#include <vector>

namespace {

constexpr int kMaxLevels = 8;

struct Sizes {
  int tokens, heads, width, queries, levels, points;
  int height[kMaxLevels], columns[kMaxLevels], start[kMaxLevels];
};

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

__global__ void forward_kernel(Sizes s, int64_t count, const float* value, const float* locations,
                               const float* weights, float* output) {
  const int64_t index = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (index >= count) return;
  const int64_t row = index / s.width;  // image, query, head
  const int channel = index % s.width, head = row % s.heads;
  const int64_t image = row / s.heads / s.queries;
  const float* values = value + (image * s.tokens * s.heads + head) * s.width + channel;
  float sum = 0;
  for (int i = 0; i < s.levels * s.points; ++i) {
    const int64_t sample = row * s.levels * s.points + i;
    Corners corners;
    if (!locate(s, i / s.points, locations + 2 * sample, corners)) continue;
    float sampled = 0;
    for (int c = 0; c < 4; ++c) {
      const float share = (c % 2 ? corners.fx : 1 - corners.fx) * (c / 2 ? corners.fy : 1 - corners.fy);
      if (corners.offset[c] >= 0) {
        sampled += share * values[static_cast<int64_t>(corners.offset[c]) * s.heads * s.width];
      }
    }
    sum += weights[sample] * sampled;
  }
  output[index] = sum;
}

// One block per (image, query, head), one thread per channel.
__global__ void backward_kernel(Sizes s, const float* incoming, const float* value, const float* locations,
                                const float* weights, float* to_value, float* to_locations, float* to_weights) {
  extern __shared__ float sums[];  // [3, width]
  const int64_t row = blockIdx.x;
  const int channel = threadIdx.x, head = row % s.heads;
  const int64_t image = row / s.heads / s.queries, step = static_cast<int64_t>(s.heads) * s.width;
  const int64_t first = (image * s.tokens * s.heads + head) * s.width + channel;
  const float g = incoming[row * s.width + channel];
  for (int i = 0; i < s.levels * s.points; ++i) {
    const int64_t sample = row * s.levels * s.points + i;
    const int level = i / s.points;
    float along_x = 0, along_y = 0, sampled = 0;
    Corners corners;
    if (locate(s, level, locations + 2 * sample, corners)) {
      for (int c = 0; c < 4; ++c) {
        if (corners.offset[c] < 0) continue;
        const float share_x = c % 2 ? corners.fx : 1 - corners.fx, share_y = c / 2 ? corners.fy : 1 - corners.fy;
        const float pixel = value[first + corners.offset[c] * step];
        sampled += share_x * share_y * pixel;
        along_x += (c % 2 ? pixel : -pixel) * share_y;
        along_y += (c / 2 ? pixel : -pixel) * share_x;
        atomicAdd(to_value + first + corners.offset[c] * step, share_x * share_y * weights[sample] * g);
      }
    }
    sums[channel] = along_x * g * weights[sample] * s.columns[level];
    sums[s.width + channel] = along_y * g * weights[sample] * s.height[level];
    sums[2 * s.width + channel] = sampled * g;
    __syncthreads();
    if (channel == 0) {
      float total[3] = {};
      for (int k = 0; k < 3; ++k) {
        for (int other = 0; other < s.width; ++other) total[k] += sums[k * s.width + other];
      }
      to_locations[2 * sample] = total[0];
      to_locations[2 * sample + 1] = total[1];
      to_weights[sample] = total[2];
    }
    __syncthreads();
  }
}

Sizes sizes_of(const at::Tensor& value, const std::vector<int64_t>& level_shapes, const at::Tensor& locations) {
  TORCH_CHECK(value.scalar_type() == at::kFloat && value.is_contiguous() && locations.is_contiguous());
  TORCH_CHECK(level_shapes.size() <= 2 * kMaxLevels && value.size(3) <= 1024);
  Sizes s{static_cast<int>(value.size(1)),     static_cast<int>(value.size(2)),
          static_cast<int>(value.size(3)),     static_cast<int>(locations.size(1)),
          static_cast<int>(locations.size(3)), static_cast<int>(locations.size(4))};
  int start = 0;
  for (int l = 0; l < s.levels; ++l) {
    s.height[l] = static_cast<int>(level_shapes[2 * l]);
    s.columns[l] = static_cast<int>(level_shapes[2 * l + 1]);
    s.start[l] = start;
    start += s.height[l] * s.columns[l];
  }
  return s;
}

at::Tensor forward(const at::Tensor& value, const std::vector<int64_t>& level_shapes, const at::Tensor& locations,
                   const at::Tensor& weights) {
  const Sizes s = sizes_of(value, level_shapes, locations);
  at::Tensor output = at::empty({value.size(0), s.queries, s.heads * s.width}, value.options());
  constexpr int kThreads = 1024;
  const unsigned blocks = static_cast<unsigned>((output.numel() + kThreads - 1) / kThreads);
  forward_kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      s, output.numel(), value.data_ptr<float>(), locations.data_ptr<float>(), weights.data_ptr<float>(),
      output.data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

std::vector<at::Tensor> backward(const at::Tensor& incoming, const at::Tensor& value,
                                 const std::vector<int64_t>& level_shapes, const at::Tensor& locations,
                                 const at::Tensor& weights) {
  const Sizes s = sizes_of(value, level_shapes, locations);
  std::vector<at::Tensor> to{at::zeros_like(value), at::empty_like(locations), at::empty_like(weights)};
  const unsigned blocks = static_cast<unsigned>(value.size(0) * s.queries * s.heads);
  backward_kernel<<<blocks, s.width, 3 * s.width * sizeof(float), c10::cuda::getCurrentCUDAStream()>>>(
      s, incoming.data_ptr<float>(), value.data_ptr<float>(), locations.data_ptr<float>(), weights.data_ptr<float>(),
      to[0].data_ptr<float>(), to[1].data_ptr<float>(), to[2].data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return to;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward);
  module.def("backward", &backward);
}
