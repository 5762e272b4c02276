// The plain backward of a warp: first of queries, then of keys.
#pragma once

#include "forward.h"

namespace tokendetr::packed::cuda {

// The gradient of a warp's queries. Notes for the keys: largest logit, one by the softmax's sum, and the mean of the
// weights' gradients.
template <class K>
TOKENDETR_DEVICE void backward_of_queries(const Problem& problem, const Work& work, const Inputs& in,
                                          const int32_t* all_segments, const Gradients& to, int64_t item, int lane) {
  using T = typename K::T;
  const int64_t container_head = item / work.tiles;
  const Row<K> row(problem, work, all_segments, container_head / problem.heads, container_head % problem.heads,
                   item % work.tiles, lane);
  const int32_t* segments = all_segments + row.container * problem.slots;
  const Biases<T> biases(problem, in, row.container, row.head);
  T query[K::kChannels] = {}, incoming[K::kChannels] = {}, gradient[K::kChannels] = {};
  if (row.segment >= 0) {
    row.load(in.query, row.slot, query);
    row.load(to.output, row.slot, incoming);
  }
  const T scale = static_cast<T>(problem.scale);
  scale_channels<K>(scale, query);
  Softmax<T> softmax;
  T mean = 0, inverse = 0;
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t first = 0; first < problem.slots; first += kKeys) {
      T logit[kKeys];
      bool together[kKeys];
      if (!logits_of_keys<K>(problem, work, in, segments, row, biases, query, first, logit, together)) continue;
      if (pass == 0) mean *= raise(softmax, logit, together);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        const int64_t key = first + k < problem.slots ? first + k : first;
        const T slope = sum_over_row(row.product(in.value, key, incoming), work.lanes);
        if (!together[k]) continue;
        const T share = softmax.share(logit[k]);
        if (pass == 0) {
          softmax.sum += share;
          mean += share * slope;
        } else {
          row.add(in.key, key, share * inverse * (slope - mean), gradient);
        }
      }
    }
    if (pass == 0) {
      inverse = softmax.inverse();
      mean *= inverse;
    }
  }
  if (!row.exists) return;
  scale_channels<K>(scale, gradient);
  row.store(to.query, gradient);
  if (!row.leads) return;
  T* notes = static_cast<T*>(to.statistics) + 3 * row.number(problem);
  notes[0] = softmax.zero();
  notes[1] = inverse;
  notes[2] = mean;
}

// The contribution of one container's query to a warp's keys.
template <class K>
struct KeyRow {
  typename K::T key[K::kChannels] = {}, value[K::kChannels] = {};  // keys times the scale
  typename K::T to_key[K::kChannels] = {}, to_value[K::kChannels] = {};
  typename K::T to_bias = 0;
};

template <class K>
TOKENDETR_DEVICE void backward_of_pair(const Problem& problem, const Work& work, const Inputs& in, const Gradients& to,
                                       const Row<K>& row, const Biases<typename K::T>& biases, int64_t query,
                                       bool together, typename K::T* table, KeyRow<K>& own, int lane) {
  using T = typename K::T;
  T logit = sum_over_row(row.product(in.query, query, own.key), work.lanes);
  const T slope = sum_over_row(row.product(to.output, query, own.value), work.lanes);
  T change = 0;
  if (together) {
    logit += biases.of(query, row.slot);
    const T* notes = static_cast<const T*>(to.statistics) + 3 * (row.number(problem) - row.slot + query);
    const T weight = exponential(logit - notes[0]) * notes[1];
    change = weight * (slope - notes[2]);
    own.to_bias += change;
    row.add(in.query, query, change, own.to_key);
    row.add(to.output, query, weight, own.to_value);
  }
  if (table != nullptr) add_in_order(table, together && row.leads ? biases.cell(query, row.slot) : -1, change, lane);
}

// The gradients of a warp's keys and values in all containers of its run, and of the biases.
template <class K>
TOKENDETR_DEVICE void backward_of_keys(const Problem& problem, const Work& work, const Inputs& in,
                                       const int32_t* all_segments, const Gradients& to, int64_t item, int lane) {
  using T = typename K::T;
  const int64_t tile = item % work.tiles, run_head = item / work.tiles;
  const int64_t head = run_head % problem.heads, run = run_head / problem.heads;
  const int64_t cells = (2 * problem.reach + 1) * (2 * problem.reach + 1);
  T* table = to.table == nullptr
                 ? nullptr
                 : static_cast<T*>(to.table) + ((run * work.tiles + tile) * problem.heads + head) * cells;
  const int64_t begin = run * work.run_length;
  const int64_t end = begin + work.run_length < problem.containers ? begin + work.run_length : problem.containers;
  const T scale = static_cast<T>(problem.scale);
  for (int64_t container = begin; container < end; ++container) {
    const Row<K> row(problem, work, all_segments, container, head, tile, lane);
    const int32_t* segments = all_segments + container * problem.slots;
    const Biases<T> biases(problem, in, container, head);
    KeyRow<K> own;
    if (row.segment >= 0) {
      row.load(in.key, row.slot, own.key);
      row.load(in.value, row.slot, own.value);
    }
    scale_channels<K>(scale, own.key);
    for (int64_t query = 0; query < problem.slots; ++query) {
      const bool together = row.is_with(segments[query]);
      if (!any_lane(together)) continue;
      backward_of_pair<K>(problem, work, in, to, row, biases, query, together, table, own, lane);
    }
    if (!row.exists) continue;
    scale_channels<K>(scale, own.to_key);
    row.store(to.key, own.to_key);
    row.store(to.value, own.to_value);
    if (to.key_bias != nullptr && row.leads) static_cast<T*>(to.key_bias)[row.number(problem)] = own.to_bias;
  }
}

}  // namespace tokendetr::packed::cuda
