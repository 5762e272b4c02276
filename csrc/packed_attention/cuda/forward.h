// The plain forward of a warp: any storage type and width.
#pragma once

#include "rows.h"

namespace tokendetr::packed::cuda {

constexpr int kKeys = 4;  // keys whose logits are computed before their values are added

// The logits of keys [first, first + kKeys), and True for keys of the row's segment; returns true if any lane of the
// warp has one.
template <class K>
TOKENDETR_DEVICE bool logits_of_keys(const Problem& problem, const Work& work, const Inputs& in,
                                     const int32_t* segments, const Row<K>& row, const Biases<typename K::T>& biases,
                                     const typename K::T (&query)[K::kChannels], int64_t first,
                                     typename K::T (&logit)[kKeys], bool (&together)[kKeys]) {
  bool any = false;
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    together[k] = first + k < problem.slots && row.is_with(segments[first + k]);
    any = any || together[k];
  }
  if (!any_lane(any)) return false;
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    const int64_t key = first + k < problem.slots ? first + k : first;
    logit[k] = sum_over_row(row.product(in.key, key, query), work.lanes);
    if (together[k]) logit[k] += biases.of(row.slot, key);
  }
  return true;
}

// Raises the softmax's maximum to the logits of the segment's keys; returns the factor of earlier shares.
template <class T>
TOKENDETR_DEVICE T raise(Softmax<T>& softmax, const T (&logit)[kKeys], const bool (&together)[kKeys]) {
  T most = softmax.largest;
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    if (together[k] && !(logit[k] <= most)) most = logit[k];
  }
  return softmax.raise(most);
}

template <class K>
TOKENDETR_DEVICE void scale_channels(typename K::T factor, typename K::T (&channels)[K::kChannels]) {
#pragma unroll
  for (int c = 0; c < K::kChannels; ++c) channels[c] *= factor;
}

template <class K>
TOKENDETR_DEVICE void forward_of_warp(const Problem& problem, const Work& work, const Inputs& in,
                                      const int32_t* all_segments, const Write& output, int64_t item, int lane) {
  using T = typename K::T;
  const int64_t container_head = item / work.tiles;
  const Row<K> row(problem, work, all_segments, container_head / problem.heads, container_head % problem.heads,
                   item % work.tiles, lane);
  const int32_t* segments = all_segments + row.container * problem.slots;
  const Biases<T> biases(problem, in, row.container, row.head);
  T query[K::kChannels] = {}, sum[K::kChannels] = {};
  if (row.segment >= 0) row.load(in.query, row.slot, query);
  scale_channels<K>(static_cast<T>(problem.scale), query);
  Softmax<T> softmax;
  for (int64_t first = 0; first < problem.slots; first += kKeys) {
    T logit[kKeys];
    bool together[kKeys];
    if (!logits_of_keys<K>(problem, work, in, segments, row, biases, query, first, logit, together)) continue;
    scale_channels<K>(raise(softmax, logit, together), sum);
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      if (!together[k]) continue;
      const T share = softmax.share(logit[k]);
      softmax.sum += share;
      row.add(in.value, first + k, share, sum);
    }
  }
  scale_channels<K>(softmax.inverse(), sum);
  if (row.exists) row.store(output, sum);
}

}  // namespace tokendetr::packed::cuda
