// The forward of a warp.
#pragma once

#include "kinds.h"

namespace tokendetr::cuda {

// Adds the weighted corners of one sample to the channels that a lane owns from `value` on.
template <class K>
TOKENDETR_DEVICE void add_sample(const Entry<typename K::T>& entry, const typename K::S* value, const void* zeros,
                                 typename K::T (&sum)[K::kVector]) {
  using S = typename K::S;
  const S* corner[4];
  corner[0] = entry.offset < 0 ? static_cast<const S*>(zeros) : value + entry.offset;
  corner[1] = corner[0] + entry.right;
  corner[2] = corner[0] + entry.down;
  corner[3] = corner[2] + entry.right;
  Packed<S, K::kVector> packed[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) packed[c] = load<K::kVector>(corner[c]);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    typename K::T pixel[K::kVector];
    widen_all(packed[c], pixel);
#pragma unroll
    for (int i = 0; i < K::kVector; ++i) sum[i] += entry.weight[c] * pixel[i];
  }
}

// `zeros`: 16 bytes of zeros, what samples outside of their level read. `warp_memory`: shared by the warp.
template <class K>
TOKENDETR_DEVICE void forward_of_warp(const Geometry& geometry, const Inputs& in, typename K::S* output,
                                      const Thread& thread, const void* zeros, char* warp_memory) {
  using T = typename K::T;
  using S = typename K::S;
  const int lane = thread.lane % K::kLanes, group = thread.lane / K::kLanes;
  const int samples = K::kUsual ? K::kSamples : geometry.samples, width = K::kUsual ? 32 : geometry.width;
  Entry<T>* entries = entries_of_group<K>(warp_memory, group);
  for (Walk<K::kGroups> walk(geometry, thread); walk.more(); walk.next()) {
    const Place place = walk.place(group);
    const Source<T, K::kLanes, K::kPoints> source(geometry, in, place, lane);
    const S* value = static_cast<const S*>(in.value) + place.image * geometry.tokens * geometry.row +
                     static_cast<int64_t>(place.head) * width;
    S* to = output + (place.image * geometry.queries + place.query) * geometry.row +
            static_cast<int64_t>(place.head) * width;
    constexpr int kStep = K::kLanes * K::kVector;
    for (int first_channel = 0; first_channel < width; first_channel += K::kChunks * kStep) {
      const int channel = first_channel + lane * K::kVector;
      T sum[K::kChunks][K::kVector] = {};
      for (int first = 0; first < samples; first += K::kLanes) {
        Entry<T> own;
        source.at(first + lane, place.real && first + lane < samples, own);
        sync_warp();
        entries[lane] = own;
        sync_warp();
        const int count = K::kUsual || samples - first > K::kLanes ? K::kLanes : samples - first;
#pragma unroll 2
        for (int i = 0; i < count; ++i) {
          const Entry<T> entry = entries[i];
#pragma unroll
          for (int chunk = 0; chunk < K::kChunks; ++chunk) {
            if (K::kUsual || channel + chunk * kStep < width) {
              add_sample<K>(entry, value + channel + chunk * kStep, zeros, sum[chunk]);
            }
          }
        }
      }
      if (!place.real) continue;
#pragma unroll
      for (int chunk = 0; chunk < K::kChunks; ++chunk) {
        const int at = channel + chunk * kStep;
        if (K::kUsual || at < width) store<T>(to + at, sum[chunk]);
      }
    }
  }
}

}  // namespace tokendetr::cuda
