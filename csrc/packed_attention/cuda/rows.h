// The plain kernels' view of the work: a group of lanes owns one row (a slot of one head), each lane some of its
// channels; a warp owns neighboring rows.
#pragma once

#include <type_traits>

#include "../../common/cuda/device.h"
#include "warp.h"
#include "work.h"

namespace tokendetr::packed::cuda {

using tokendetr::cuda::BFloat;
using tokendetr::cuda::exponential;
using tokendetr::cuda::Half;
using tokendetr::cuda::Packed;
using tokendetr::cuda::Thread;
using tokendetr::cuda::widen_all;

// T: logits and sums; S: storage; loads of kVector elements; kChannels per lane.
template <class Accumulate, class Store, Storage kStorage, int kVector_>
struct Kind {
  using T = Accumulate;
  using S = Store;
  static constexpr int kVector = kVector_, kChannels = channels_per_lane(kStorage);
};

template <class Function>
auto with_kind(Storage storage, bool whole_vectors, Function function) {
  switch (storage) {
    case Storage::kFloat64:
      return function(Kind<double, double, Storage::kFloat64, 1>{});
    case Storage::kBFloat16:
      if (whole_vectors) return function(Kind<float, BFloat, Storage::kBFloat16, 8>{});
      return function(Kind<float, BFloat, Storage::kBFloat16, 1>{});
    case Storage::kFloat16:
      if (whole_vectors) return function(Kind<float, Half, Storage::kFloat16, 8>{});
      return function(Kind<float, Half, Storage::kFloat16, 1>{});
    default:
      if (whole_vectors) return function(Kind<float, float, Storage::kFloat32, 4>{});
      return function(Kind<float, float, Storage::kFloat32, 1>{});
  }
}

// One lane's share of the row that its group owns.
template <class K>
struct Row {
  int64_t container, head, slot;
  int32_t channel, count;  // first channel and how many
  int32_t segment;         // negative: padding, or no row
  bool exists;
  bool leads;  // its group's first lane

  TOKENDETR_DEVICE Row(const Problem& problem, const Work& work, const int32_t* segments, int64_t its_container,
                       int64_t its_head, int64_t tile, int lane)
      : container(its_container), head(its_head), slot(tile * (kWarp / work.lanes) + lane / work.lanes) {
    channel = lane % work.lanes * K::kChannels;
    const int64_t left = problem.width - channel;
    count = left <= 0 ? 0 : left < K::kChannels ? static_cast<int32_t>(left) : K::kChannels;
    exists = slot < problem.slots;
    segment = exists ? segments[container * problem.slots + slot] : -1;
    leads = lane % work.lanes == 0;
  }

  template <class Pointer>
  TOKENDETR_DEVICE int64_t offset(const Strided<Pointer>& tensor, int64_t at) const {
    return container * tensor.container + at * tensor.slot + head * tensor.head + channel;
  }

  TOKENDETR_DEVICE bool is_with(int32_t other) const { return segment >= 0 && other == segment; }
  // Its number in a tensor [G, M, T].
  TOKENDETR_DEVICE int64_t number(const Problem& problem) const {
    return (container * problem.heads + head) * problem.slots + slot;
  }

  // The lane's channels of a slot's row; those behind the last are 0.
  TOKENDETR_DEVICE void load(const Read& tensor, int64_t at, typename K::T (&to)[K::kChannels]) const {
    const typename K::S* from = static_cast<const typename K::S*>(tensor.data) + offset(tensor, at);
#pragma unroll
    for (int c = 0; c < K::kChannels; c += K::kVector) {
      typename K::T vector[K::kVector] = {};
      if (c < count) widen_all(tokendetr::cuda::load<K::kVector>(from + c), vector);
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) to[c + i] = vector[i];
    }
  }

  TOKENDETR_DEVICE void store(const Write& tensor, const typename K::T (&from)[K::kChannels]) const {
    typename K::S* to = static_cast<typename K::S*>(tensor.data) + offset(tensor, slot);
#pragma unroll
    for (int c = 0; c < K::kChannels; c += K::kVector) {
      typename K::T vector[K::kVector];
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) vector[i] = from[c + i];
      if (c < count) tokendetr::cuda::store<typename K::T>(to + c, vector);
    }
  }

  // This lane's part of the product of its channels with those of a slot's row.
  TOKENDETR_DEVICE typename K::T product(const Read& tensor, int64_t at,
                                         const typename K::T (&own)[K::kChannels]) const {
    const typename K::S* from = static_cast<const typename K::S*>(tensor.data) + offset(tensor, at);
    typename K::T sum = 0;
#pragma unroll
    for (int c = 0; c < K::kChannels; c += K::kVector) {
      if (c >= count) continue;
      typename K::T vector[K::kVector];
      widen_all(tokendetr::cuda::load<K::kVector>(from + c), vector);
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) sum += own[c + i] * vector[i];
    }
    return sum;
  }

  // sum += weight * row of a slot.
  TOKENDETR_DEVICE void add(const Read& tensor, int64_t at, typename K::T weight,
                            typename K::T (&sum)[K::kChannels]) const {
    const typename K::S* from = static_cast<const typename K::S*>(tensor.data) + offset(tensor, at);
#pragma unroll
    for (int c = 0; c < K::kChannels; c += K::kVector) {
      if (c >= count) continue;
      typename K::T vector[K::kVector];
      widen_all(tokendetr::cuda::load<K::kVector>(from + c), vector);
#pragma unroll
      for (int i = 0; i < K::kVector; ++i) sum[c + i] += weight * vector[i];
    }
  }
};

template <class T>
TOKENDETR_DEVICE T minus_infinity() {
  return -static_cast<T>(__builtin_huge_val());
}

// The bias of the logit of a pair of slots of one container and head.
template <class T>
struct Biases {
  const int32_t* position;
  const T* table;
  const T* key_bias;
  int32_t reach;

  TOKENDETR_DEVICE Biases(const Problem& problem, const Inputs& in, int64_t container, int64_t head)
      : position(in.position == nullptr ? nullptr : in.position + container * problem.slots * 2),
        table(in.table == nullptr
                  ? nullptr
                  : static_cast<const T*>(in.table) + head * (2 * problem.reach + 1) * (2 * problem.reach + 1)),
        key_bias(in.key_bias == nullptr ? nullptr : static_cast<const T*>(in.key_bias) + container * problem.slots),
        reach(static_cast<int32_t>(problem.reach)) {}

  TOKENDETR_DEVICE int32_t clipped(int32_t query, int32_t key) const {
    const int64_t offset = static_cast<int64_t>(query) - key;
    return static_cast<int32_t>(offset < -reach ? -reach : offset > reach ? reach : offset);
  }
  TOKENDETR_DEVICE int32_t cell(int64_t query, int64_t key) const {
    const int32_t y = clipped(position[2 * query], position[2 * key]);
    const int32_t x = clipped(position[2 * query + 1], position[2 * key + 1]);
    return (y + reach) * (2 * reach + 1) + x + reach;
  }
  TOKENDETR_DEVICE T of(int64_t query, int64_t key) const {
    T bias = 0;
    if (table != nullptr) bias += table[cell(query, key)];
    if (key_bias != nullptr) bias += key_bias[key];
    return bias;
  }
};

// Largest logit of a row and sum of e^(logit - largest), while logits come in.
template <class T>
struct Softmax {
  T largest = minus_infinity<T>();
  T sum = 0;

  TOKENDETR_DEVICE T zero() const { return largest == minus_infinity<T>() ? T(0) : largest; }
  // Takes in a larger logit; returns what earlier shares are multiplied by.
  TOKENDETR_DEVICE T raise(T logit) {
    const T before = largest;
    if (!(logit <= before)) largest = logit;  // takes NaN as well
    const T factor = exponential(before - zero());
    sum *= factor;
    return factor;
  }
  TOKENDETR_DEVICE T share(T logit) const { return exponential(logit - zero()); }
  TOKENDETR_DEVICE T inverse() const { return sum == T(0) ? T(0) : T(1) / sum; }
};

}  // namespace tokendetr::packed::cuda
