// The backward of a warp.
#pragma once

#include "kinds.h"

namespace tokendetr::cuda {

// One sample and the channels that a lane owns: makes the dot products of corners and incoming gradient, and adds the
// weighted incoming gradient to the value gradient (null: leaves it alone).
template <class K>
TOKENDETR_DEVICE void scatter_sample(const Entry<typename K::T>& entry, const typename K::S* value,
                                     typename K::T* gradient, const void* zeros,
                                     const typename K::T (&incoming)[K::kVector], typename K::T (&dot)[4]) {
  using T = typename K::T;
  using S = typename K::S;
  const bool inside = entry.offset >= 0;
  const S* corner[4];
  corner[0] = inside ? value + entry.offset : static_cast<const S*>(zeros);
  corner[1] = corner[0] + entry.right;
  corner[2] = corner[0] + entry.down;
  corner[3] = corner[2] + entry.right;
  Packed<S, K::kVector> packed[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) packed[c] = load<K::kVector>(corner[c]);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    T pixel[K::kVector];
    widen_all(packed[c], pixel);
    dot[c] = T(0);
#pragma unroll
    for (int v = 0; v < K::kVector; ++v) dot[c] += pixel[v] * incoming[v];
  }
  if (gradient == nullptr || !inside) return;
  T* to[4];
  to[0] = gradient + entry.offset;
  to[1] = to[0] + entry.right;
  to[2] = to[0] + entry.down;
  to[3] = to[2] + entry.right;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    T share[K::kVector];
#pragma unroll
    for (int v = 0; v < K::kVector; ++v) share[v] = entry.weight[c] * incoming[v];
    add(to[c], share);
  }
}

// Sums the reference gradients of a batch of samples, one per lane, level by level into this head's part.
template <class K, class Samples>
TOKENDETR_DEVICE void add_reference_gradient(const Samples& source, int first, int lane, int samples, bool real,
                                             int reference_width, const typename K::T (&gradient)[4],
                                             typename K::T* part) {
  using T = typename K::T;
  const int last = samples - first > K::kLanes ? first + K::kLanes - 1 : samples - 1;
  const int own_level = source.level_of(first + lane);
  for (int l = source.level_of(first); l <= source.level_of(last); ++l) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T total = sum_over_lanes<K::kLanes>(own_level == l && real ? gradient[k] : T(0));
      if (lane == 0 && real && k < reference_width) part[l * reference_width + k] += total;
    }
  }
}

template <class K>
TOKENDETR_DEVICE void backward_of_warp(const Geometry& geometry, const Inputs& in, const Gradients& gradients,
                                       const Thread& thread, const void* zeros, char* warp_memory) {
  using T = typename K::T;
  using S = typename K::S;
  const int lane = thread.lane % K::kLanes, group = thread.lane / K::kLanes;
  const int samples = K::kUsual ? K::kSamples : geometry.samples, width = K::kUsual ? 32 : geometry.width;
  Entry<T>* entries = entries_of_group<K>(warp_memory, group);
  for (Walk<K::kGroups> walk(geometry, thread); walk.more(); walk.next()) {
    const Place place = walk.place(group);
    const Source<T, K::kLanes, K::kPoints> source(geometry, in, place, lane);
    const int64_t first_value = place.image * geometry.tokens * geometry.row + static_cast<int64_t>(place.head) * width;
    const int64_t row = place.image * geometry.queries + place.query;
    const S* value = static_cast<const S*>(in.value) + first_value;
    T* to_value = gradients.value == nullptr ? nullptr : static_cast<T*>(gradients.value) + first_value;
    const S* incoming =
        static_cast<const S*>(gradients.output) + row * geometry.row + static_cast<int64_t>(place.head) * width;
    T* to_location = static_cast<T*>(gradients.locations) + 2 * source.first_sample();
    T* to_weight = static_cast<T*>(gradients.weights) + source.first_sample();
    T softmax_total = 0;
    for (int first = 0; first < samples; first += K::kLanes) {
      const int s = first + lane;
      const bool real = place.real && s < samples;
      Entry<T> own;
      const Located<T> sample = source.at(s, real, own);
      sync_warp();
      entries[lane] = own;
      sync_warp();
      T dots[4] = {};
      for (int pass = 0; pass < width; pass += K::kLanes * K::kVector) {
        const int channel = pass + lane * K::kVector;
        const bool active = K::kUsual || channel < width;
        T g[K::kVector] = {};
        if (active) widen_all(load<K::kVector>(incoming + channel), g);
        T sums[4];
        sum_of_each<K::kLanes, 1>(
            lane, 0,
            [&](int i, T(&dot)[4]) {
              if (active) {
                scatter_sample<K>(entries[i], value + channel, to_value == nullptr ? nullptr : to_value + channel,
                                  zeros, g, dot);
              } else {
                dot[0] = dot[1] = dot[2] = dot[3] = T(0);
              }
            },
            sums);
#pragma unroll
        for (int c = 0; c < 4; ++c) dots[c] += sums[c];
      }
      const SampleGradient<T> gradient = gradient_of(sample, dots);
      T location[2], reference[4];
      source.chain(real ? s : 0, gradient, location, reference);
      if (real) {
        store<T>(to_location + 2 * s, location);
        to_weight[s] = gradient.weight;
        softmax_total += sample.weight * gradient.weight;
        if (gradients.notes.cells != nullptr) {
          const int64_t number = source.first_sample() + s;
          gradients.notes.cells[number] =
              sample.inside ? place.head * geometry.cells + geometry.level[source.level_of(s)].first_cell + sample.cell
                            : geometry.heads * geometry.cells;
          T* share = static_cast<T*>(gradients.notes.shares) + 3 * number;
          share[0] = sample.fx;
          share[1] = sample.fy;
          share[2] = sample.weight;
        }
      }
      if (gradients.reference != nullptr) {
        const int64_t images = geometry.image_heads / geometry.heads;
        T* part = static_cast<T*>(gradients.reference) +
                  (place.head * images * geometry.queries + row) * geometry.levels * in.reference_width;
        add_reference_gradient<K>(source, first, lane, samples, real, in.reference_width, reference, part);
      }
    }
    if (source.fused()) {  // the softmax: each lane reads back what it wrote
      softmax_total = sum_over_lanes<K::kLanes>(softmax_total);
      for (int s = lane; place.real && s < samples; s += K::kLanes) {
        to_weight[s] = source.weight(s) * (to_weight[s] - softmax_total);
      }
    }
  }
}

}  // namespace tokendetr::cuda
