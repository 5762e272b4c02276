// The forward of one head of one container: segment after segment, blocks of queries against all keys of a segment.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

TOKENDETR_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
struct ForwardScratch {
  Carver carver;
  KeyBiases<T> biases;
  T *query, *rows, *keys, *scores;

  ForwardScratch(const Problem& problem, int64_t longest, bool has_table, void* base)
      : carver(base), biases(carver, longest, has_table) {
    const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = row_length<T>(longest);
    query = carver.take<T>((kBlock + kLanes<T>) * width);
    rows = carver.take<T>(length * width);
    keys = carver.take<T>(width * length);
    scores = carver.take<T>(kBlock * length);
  }
};

template <class T, class S>
void forward_segment(const Problem& problem, const Inputs& in, int64_t container, int64_t head, const int32_t* slots,
                     int64_t count, ForwardScratch<T>& scratch, const Head<S>& output) {
  const Head<const S> query(in.query, container, head), key(in.key, container, head), value(in.value, container, head);
  const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = row_length<T>(count);
  KeyBiases<T>& biases = scratch.biases;
  biases.fill(problem, in, container, head, slots, count);
  gather_rows<T, S>(key, slots, count, problem.width, T(1), scratch.rows);
  transpose<T>(scratch.rows, biases.vectors * kLanes<T>, width, scratch.keys, length);
  gather_rows<T, S>(value, slots, count, problem.width, T(1), scratch.rows);
  T inverse[kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t queries = least(kBlock, count - first);
    gather_rows<T, S>(query, slots + first, queries, problem.width, static_cast<T>(problem.scale), scratch.query);
    multiply<T>({scratch.query, width, 1}, {scratch.keys, length}, queries, problem.width, biases.vectors,
                StoreRows<T>{scratch.scores, length});
    softmax_rows<T>(problem, in, container, slots + first, queries, biases, scratch.scores, length, inverse);
    multiply<T>({scratch.scores, length, 1}, {scratch.rows, width}, queries, count, width / kLanes<T>,
                StoreRows<T>{scratch.query, width});
    scatter_rows<T, S>(problem, scratch.query, slots + first, queries, [&](int64_t i) { return inverse[i]; }, output);
  }
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
