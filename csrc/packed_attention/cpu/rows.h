// Copies of a head's rows from tensors to scratch memory and back. In scratch memory they are in the type of the sums,
// dense, and padded with zeros.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

using tokendetr::packed::Gradients;
using tokendetr::packed::Heads;
using tokendetr::packed::Inputs;
using tokendetr::packed::Problem;
using tokendetr::packed::Read;
using tokendetr::packed::Segments;
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

// Some slots of one head of one container.
struct Place {
  int64_t container;
  int64_t head;
  const int32_t* slots;
  int64_t count;
  int64_t width;
};

// Their rows in a tensor of S.
template <class S>
struct Rows {
  S* data;
  int64_t slot;
  int64_t next;  // the same head of the next container, which is worked on after the other heads of this one
  const int32_t* slots;
  int64_t count;
  int64_t width;

  template <class Pointer>
  Rows(const tokendetr::packed::Strided<Pointer>& tensor, const Place& place)
      : data(static_cast<S*>(tensor.data) + place.container * tensor.container + place.head * tensor.head),
        slot(tensor.slot),
        next(tensor.container),
        slots(place.slots),
        count(place.count),
        width(place.width) {}

  TOKENDETR_INLINE S* at(int64_t row) const { return data + slots[row] * slot; }
  // Prefetches this row of the next container: rows of a head lie too far apart for the processor's own prefetchers.
  // Called row by row during a product, whose operands are all in the L1 cache: many fetches at once would delay the
  // loads behind them.
  TOKENDETR_INLINE void fetch_next(int64_t row) const {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(at(row)) + static_cast<size_t>(next) * sizeof(S);
    for (size_t byte = 0; byte < static_cast<size_t>(width) * sizeof(S); byte += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(begin + byte), !std::is_const_v<S>, 2);
    }
  }
};

// Rows times factor(row), then rows of zeros up to whole vectors of them.
template <class T, class S, class Factor>
TOKENDETR_INLINE void gather_rows(const Rows<const S>& from, const Factor& factor, T* to) {
  const int64_t vectors = whole_vectors<T>(from.width), row = vectors * kLanes<T>;
  for (int64_t i = 0; i < from.count; ++i) {
    const Vec<T> times = broadcast<T>(factor(i));
    for (int64_t c = 0; c < row; c += kLanes<T>) {
      store<T>(to + i * row + c, load_some<T>(from.at(i) + c, from.width - c) * times);
    }
  }
  const int64_t rows = whole_vectors<T>(from.count) * kLanes<T>;
  std::memset(to + from.count * row, 0, static_cast<size_t>((rows - from.count) * row) * sizeof(T));
}

// Rows times factor(row).
template <class T, class S, class Factor>
TOKENDETR_INLINE void scatter_rows(const T* from, const Factor& factor, const Rows<S>& to) {
  const int64_t row = whole_vectors<T>(to.width) * kLanes<T>;
  for (int64_t i = 0; i < to.count; ++i) {
    const Vec<T> times = broadcast<T>(factor(i));
    for (int64_t c = 0; c < row; c += kLanes<T>) {
      store_some<T>(to.at(i) + c, load<T>(from + i * row + c) * times, to.width - c);
    }
  }
}

// The same factor for all rows.
template <class T>
struct Always {
  T factor;
  TOKENDETR_INLINE T operator()(int64_t) const { return factor; }
};

// Writes a product's vectors as rows of scratch memory.
template <class T>
struct StoreRows {
  T* rows;
  int64_t length;
  TOKENDETR_INLINE void operator()(int64_t i, int64_t v, Vec<T> sum) const {
    store<T>(rows + i * length + v * kLanes<T>, sum);
  }
};

// The same, while rows of the next container are fetched: those of one tensor that is read and of one that is written.
template <class T, class S>
struct StoreAndFetch {
  StoreRows<T> rows;
  Rows<const S> read;
  Rows<S> written;
  TOKENDETR_INLINE void operator()(int64_t i, int64_t v, Vec<T> sum) const {
    rows(i, v, sum);
    if (v > 0) return;
    read.fetch_next(i);
    written.fetch_next(i);
  }
};

template <class T, int kDistance = kLanes<T> / 2>
TOKENDETR_INLINE void transpose_square(Vec<T>* row) {
  if constexpr (kDistance > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & kDistance) == 0) exchange<T, kDistance>(row[i], row[i + kDistance]);
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

// The first `vectors` vectors of rows as columns; behind the last row zeros.
template <class T, class S>
inline void gather_columns(const Rows<const S>& from, int64_t vectors, T* to, int64_t to_row) {
  for (int64_t first = 0; first < vectors * kLanes<T>; first += kLanes<T>) {
    for (int64_t c = 0; c < from.width; c += kLanes<T>) {
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) {
        square[k] = first + k < from.count ? load_some<T>(from.at(first + k) + c, from.width - c) : Vec<T>{};
      }
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (int k = 0; k < kLanes<T>; ++k) store<T>(to + (c + k) * to_row + first, square[k]);
    }
  }
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
