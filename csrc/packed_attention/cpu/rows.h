// Rows of a head between tensors and scratch memory, where they are of the sums' type, dense and padded with zeros.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

using tokendetr::packed::Gradients;
using tokendetr::packed::Inputs;
using tokendetr::packed::Problem;
using tokendetr::packed::Read;
using tokendetr::packed::Segments;
using tokendetr::packed::Storage;
using tokendetr::packed::Write;

template <class T>
TOKENDETR_INLINE int64_t whole_vectors(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T>;
}

// The length of a row of `count` numbers: whole vectors, long rows not a multiple of a page apart.
template <class T>
TOKENDETR_INLINE int64_t row_length(int64_t count) {
  const int64_t vectors = whole_vectors<T>(count);
  return (vectors > 16 && vectors % 2 == 0 ? vectors + 1 : vectors) * kLanes<T>;
}

template <class T, class S>
TOKENDETR_INLINE Vec<T> load_first(const S* from, int64_t count) {
  if (count >= kLanes<T>) return load<T>(from);
  S few[kLanes<T>] = {};
  std::memcpy(few, from, static_cast<size_t>(count) * sizeof(S));
  return load<T>(few);
}
template <class T, class S>
TOKENDETR_INLINE void store_first(S* to, Vec<T> vector, int64_t count) {
  if (count >= kLanes<T>) return store<T>(to, vector);
  S few[kLanes<T>];
  store<T>(few, vector);
  std::memcpy(to, few, static_cast<size_t>(count) * sizeof(S));
}

// One head of one container of a tensor.
template <class S>
struct Head {
  S* data;
  int64_t slot;
  int64_t next;  // the same head of the next container, which is worked on after the other heads of this one

  template <class Pointer>
  Head(const tokendetr::packed::Strided<Pointer>& tensor, int64_t container, int64_t head)
      : data(static_cast<S*>(tensor.data) + container * tensor.container + head * tensor.head),
        slot(tensor.slot),
        next(tensor.container) {}
  TOKENDETR_INLINE S* at(int64_t slot_number) const { return data + slot_number * slot; }
  // Rows of a head lie apart, which no processor foresees: fetches the next container's while this one is worked on.
  TOKENDETR_INLINE void fetch_next(int64_t slot_number, int64_t width) const {
    const uintptr_t row = reinterpret_cast<uintptr_t>(at(slot_number)) + static_cast<size_t>(next) * sizeof(S);
    for (size_t byte = 0; byte < static_cast<size_t>(width) * sizeof(S); byte += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(row + byte), !std::is_const_v<S>, 2);
    }
  }
};

// Rows of `count` slots, times `factor`, then rows of zeros up to whole vectors of them.
template <class T, class S>
TOKENDETR_INLINE void gather_rows(const Head<const S>& head, const int32_t* slots, int64_t count, int64_t width,
                                  T factor, T* to) {
  const int64_t vectors = whole_vectors<T>(width), row = vectors * kLanes<T>;
  const Vec<T> times = broadcast<T>(factor);
  for (int64_t i = 0; i < count; ++i) {
    const S* from = head.at(slots[i]);
    head.fetch_next(slots[i], width);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t channel = v * kLanes<T>;
      store<T>(to + i * row + channel, load_first<T>(from + channel, width - channel) * times);
    }
  }
  const int64_t rows = whole_vectors<T>(count) * kLanes<T>;
  std::memset(to + count * row, 0, static_cast<size_t>((rows - count) * row) * sizeof(T));
}

// Whether a tensor like the queries is too large to be read again from a cache; it is then written past them.
template <class S>
TOKENDETR_INLINE bool is_large(const Problem& problem) {
  constexpr int64_t kCached = int64_t{1} << 23;
  return problem.containers * problem.slots * problem.heads * problem.width * static_cast<int64_t>(sizeof(S)) > kCached;
}

// Rows times factor(row) to slots.
template <class T, class S, class Factor>
TOKENDETR_INLINE void scatter_rows(const Problem& problem, const T* rows, const int32_t* slots, int64_t count,
                                   const Factor& factor, const Head<S>& to) {
  const int64_t width = problem.width, row = whole_vectors<T>(width) * kLanes<T>;
  const bool streams = std::is_same_v<T, S> && is_large<S>(problem);
  for (int64_t i = 0; i < count; ++i) {
    const Vec<T> times = broadcast<T>(factor(i));
    if constexpr (std::is_same_v<T, S>) {
      if (streams && can_stream<T>(to.at(slots[i]), width)) {
        for (int64_t c = 0; c < width; c += kLanes<T>) {
          stream<T>(to.at(slots[i]) + c, load<T>(rows + i * row + c) * times);
        }
        continue;
      }
    }
    to.fetch_next(slots[i], width);
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      store_first<T>(to.at(slots[i]) + c, load<T>(rows + i * row + c) * times, width - c);
    }
  }
  if (streams) finish_streams();
}

// What a product's vectors become: rows of scratch memory.
template <class T>
struct StoreRows {
  T* rows;
  int64_t length;
  TOKENDETR_INLINE void operator()(int64_t i, int64_t v, Vec<T> sum) const {
    store<T>(rows + i * length + v * kLanes<T>, sum);
  }
};

template <int kCount, int kDistance>
struct PickUpper {
  static constexpr int at(int lane) { return (lane & kDistance) ? kCount + (lane ^ kDistance) : lane; }
};
template <int kCount, int kDistance>
struct PickLower {
  static constexpr int at(int lane) { return (lane & kDistance) ? kCount + lane : lane ^ kDistance; }
};

template <class T, int kDistance = kLanes<T> / 2>
TOKENDETR_INLINE void transpose_square(Vec<T>* row) {
  if constexpr (kDistance > 0) {
    constexpr int kCount = kLanes<T>;
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      if (i & kDistance) continue;
      const Vec<T> a = row[i], b = row[i + kDistance];
      row[i] = shuffle<T>(a, b, PickUpper<kCount, kDistance>{});
      row[i + kDistance] = shuffle<T>(a, b, PickLower<kCount, kDistance>{});
    }
    transpose_square<T, kDistance / 2>(row);
  }
}

// `rows` and `columns` are whole vectors.
template <class T>
inline void transpose(const T* from, int64_t rows, int64_t columns, T* to, int64_t to_row) {
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    for (int64_t j = 0; j < columns; j += kLanes<T>) {
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) square[k] = load<T>(from + (i + k) * columns + j);
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) store<T>(to + (j + k) * to_row + i, square[k]);
    }
  }
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
