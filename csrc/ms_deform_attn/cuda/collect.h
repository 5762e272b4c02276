// The deterministic value gradient: every pixel sums, in a fixed order, the samples of the four cells around it.
#pragma once

#include "kinds.h"

namespace tokendetr::cuda {

// How many of the sorted numbers are less than `least`.
TOKENDETR_DEVICE int64_t first_at_least(const int32_t* sorted, int64_t count, int32_t least) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle] < least) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// A sample near a warp's pixel, as its lanes exchange it.
template <class T>
struct alignas(16) Share {
  int64_t offset;  // of the query's incoming gradient, in elements
  T weight;
};

template <class K>
constexpr int kCollectBytes = kWarp * static_cast<int>(sizeof(Share<typename K::T>));

// The samples of the cells around a pixel, numbered through; cell c lies to the upper left for c = 0, upper right,
// lower left, lower right for 3.
struct Around {
  int64_t begin[4];
  int64_t end[4];  // counts, accumulated

  TOKENDETR_DEVICE Around(const Geometry& geometry, const int64_t* cell_start, int32_t head, int32_t token) {
    int l = geometry.levels - 1;
    while (l > 0 && token < geometry.level[l].start) --l;
    const LevelGeometry& level = geometry.level[l];
    const int32_t pixel = token - level.start, y = pixel / level.width, x = pixel - y * level.width;
    int64_t total = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t cell =
          static_cast<int64_t>(head) * geometry.cells + level.first_cell + (y + c / 2) * (level.width + 1) + x + c % 2;
      begin[c] = cell_start[cell];
      total += cell_start[cell + 1] - begin[c];
      end[c] = total;
    }
  }

  // Sets `position` in the sorted samples of sample number i and returns its cell.
  TOKENDETR_DEVICE int cell_of(int64_t i, int64_t& position) const {
    int cell = 0;
    position = begin[0] + i;
#pragma unroll
    for (int c = 1; c < 4; ++c) {
      if (i >= end[c - 1]) {
        cell = c;
        position = begin[c] + i - end[c - 1];
      }
    }
    return cell;
  }
};

// A warp works on one pixel and head: its lanes look up 32 samples at once, its groups then take every kGroups-th.
template <class K>
TOKENDETR_DEVICE void collect_of_warp(const Geometry& geometry, const typename K::S* grad_output,
                                      const typename K::T* shares, const SortedSamples& sorted,
                                      typename K::S* grad_value, const Thread& thread, char* warp_memory) {
  using T = typename K::T;
  using S = typename K::S;
  Share<T>* exchange = reinterpret_cast<Share<T>*>(warp_memory);
  const int lane = thread.lane % K::kLanes, group = thread.lane / K::kLanes;
  const int32_t samples_per_query = geometry.heads * geometry.samples;
  const int64_t pixels = geometry.tokens * geometry.heads;
  const T* image_shares = shares + 3 * sorted.image * geometry.queries * samples_per_query;
  const S* image_gradient = grad_output + sorted.image * geometry.queries * geometry.row;
  S* to_image = grad_value + sorted.image * geometry.tokens * geometry.row;
  for (int64_t at = thread.block * thread.warps + thread.warp; at < pixels; at += thread.blocks * thread.warps) {
    const int32_t head = static_cast<int32_t>(at / geometry.tokens);
    const int32_t token = static_cast<int32_t>(at - head * geometry.tokens);
    const Around around(geometry, sorted.cell_start, head, token);
    const int64_t first_channel = static_cast<int64_t>(head) * geometry.width;
    for (int pass = 0; pass < geometry.width; pass += K::kLanes * K::kVector) {
      const int channel = pass + lane * K::kVector;
      T sum[K::kVector] = {};
      for (int64_t first = 0; first < around.end[3]; first += kWarp) {
        Share<T> own{0, T(0)};
        if (first + thread.lane < around.end[3]) {
          int64_t position;
          const int cell = around.cell_of(first + thread.lane, position);
          const int64_t sample = sorted.sample[position];
          const T* share = image_shares + 3 * sample;
          const T along_x = cell % 2 == 0 ? share[0] : T(1) - share[0];
          const T along_y = cell / 2 == 0 ? share[1] : T(1) - share[1];
          own.weight = along_y * share[2] * along_x;
          own.offset = sample / samples_per_query * geometry.row + first_channel;
        }
        sync_warp();
        exchange[thread.lane] = own;
        sync_warp();
        const int count = around.end[3] - first > kWarp ? kWarp : static_cast<int>(around.end[3] - first);
        for (int i = group; i < count && channel < geometry.width; i += K::kGroups) {
          const Share<T> one = exchange[i];
          T g[K::kVector];
          widen_all(load<K::kVector>(image_gradient + one.offset + channel), g);
#pragma unroll
          for (int v = 0; v < K::kVector; ++v) sum[v] += one.weight * g[v];
        }
      }
#pragma unroll
      for (int v = 0; v < K::kVector; ++v) {
#pragma unroll
        for (int distance = kWarp / 2; distance >= K::kLanes; distance /= 2) sum[v] += shuffle_xor(sum[v], distance);
      }
      if (group == 0 && channel < geometry.width) {
        store<T>(to_image + token * geometry.row + first_channel + channel, sum);
      }
    }
  }
}

}  // namespace tokendetr::cuda
