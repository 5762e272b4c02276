// Products of small matrices in registers.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

// Element (i, k) of the left factor is left[i * row + k * step]: a matrix or, with row 1, a transposed one.
template <class T>
struct Left {
  const T* data;
  int64_t row;
  int64_t step;
};

// Rows of whole vectors, 64-byte aligned.
template <class T>
struct Right {
  const T* data;
  int64_t row;
};

// What a step of a product adds to a sum.
struct MultiplyAdd {
  template <class V>
  TOKENDETR_INLINE V operator()(V sum, V left, V right) const {
    return sum + left * right;
  }
};

constexpr int kVectorsAtOnce = kVectorBytes == 64 ? 4 : 2;
// Rows whose sums fit in the registers and whose addresses do.
template <int kVectors>
constexpr int kRowsAtOnce = kVectors == 1                        ? 8
                            : kVectorBytes == 64 && kVectors < 4 ? 7
                                                                 : 6;

template <class T, int kRows, int kVectors, class Put, class Step>
TOKENDETR_INLINE void multiply_tile(const Left<T>& left, const Right<T>& right, int64_t depth, int64_t row,
                                    int64_t vector, const Put& put, const Step& step) {
  Vec<T> sum[kRows][kVectors] = {};
  const T* a = left.data + row * left.row;
  const T* b = right.data + vector * kLanes<T>;
  for (int64_t k = 0; k < depth; ++k, a += left.step, b += right.row) {
    Vec<T> own[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) own[v] = *reinterpret_cast<const Vec<T>*>(b + v * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> factor = broadcast<T>(a[r * left.row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = step(sum[r][v], factor, own[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) put(row + r, vector + v, sum[r][v]);
  }
}

template <class T, int kVectors, class Put, class Step>
TOKENDETR_INLINE void multiply_columns(const Left<T>& left, const Right<T>& right, int64_t rows, int64_t depth,
                                       int64_t vector, const Put& put, const Step& step) {
  constexpr int kMost = kRowsAtOnce<kVectors>;
  int64_t row = 0;
  for (; row + kMost <= rows; row += kMost)
    multiply_tile<T, kMost, kVectors>(left, right, depth, row, vector, put, step);
  if constexpr (kMost > 4) {
    for (; row + 4 <= rows; row += 4) multiply_tile<T, 4, kVectors>(left, right, depth, row, vector, put, step);
  }
  for (; row < rows; ++row) multiply_tile<T, 1, kVectors>(left, right, depth, row, vector, put, step);
}

// put(i, j, vector j of row i of the product), in any order. It must not call functions: around a call no sum could
// stay in a register.
template <class T, class Put, class Step = MultiplyAdd>
TOKENDETR_INLINE void multiply(const Left<T>& left, const Right<T>& right, int64_t rows, int64_t depth, int64_t vectors,
                               const Put& put, const Step& step = {}) {
  int64_t vector = 0;
  for (; vector + kVectorsAtOnce <= vectors; vector += kVectorsAtOnce) {
    multiply_columns<T, kVectorsAtOnce>(left, right, rows, depth, vector, put, step);
  }
  if constexpr (kVectorsAtOnce > 2) {
    if (vectors - vector == 3) return multiply_columns<T, 3>(left, right, rows, depth, vector, put, step);
    if (vectors - vector == 2) return multiply_columns<T, 2>(left, right, rows, depth, vector, put, step);
  }
  if (vectors - vector == 1) multiply_columns<T, 1>(left, right, rows, depth, vector, put, step);
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
