// The backward of one head of one container. Attention weights are made again, so that the forward keeps nothing.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

template <class T>
struct BackwardScratch {
  Carver carver;
  KeyBiases<T> biases;
  T *query, *incoming;                   // a block's rows
  T *key, *keys, *values;                // keys in rows; keys and values in columns
  T *weights, *slopes;                   // [block, keys]: softmax and the gradient of the logits
  T *key_gradient, *value_gradient;      // rows, sums over the blocks
  T *column_sums;                        // of slopes

  BackwardScratch(const Problem& problem, int64_t longest, bool has_table, void* base)
      : carver(base), biases(carver, longest, has_table) {
    const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = row_length<T>(longest);
    query = carver.take<T>((kBlock + kLanes<T>) * width);
    incoming = carver.take<T>((kBlock + kLanes<T>) * width);
    key = carver.take<T>(length * width);
    keys = carver.take<T>(width * length);
    values = carver.take<T>(width * length);
    weights = carver.take<T>(kBlock * length);
    slopes = carver.take<T>(kBlock * length);
    key_gradient = carver.take<T>(length * width);
    value_gradient = carver.take<T>(length * width);
    column_sums = carver.take<T>(length);
  }
};

// From weights P and their gradient to that of the logits, P * (dP - sum of P * dP), over dP.
template <class T>
TOKENDETR_INLINE void slopes_of_row(const KeyBiases<T>& keys, T inverse, T* weights, T* slopes) {
  const int64_t end = keys.vectors * kLanes<T>;
  const Vec<T> times = broadcast<T>(inverse);
  Vec<T> sum{};
  for (int64_t j = 0; j < end; j += kLanes<T>) {
    const Vec<T> weight = load<T>(weights + j) * times;
    store<T>(weights + j, weight);
    sum += weight * load<T>(slopes + j);
  }
  const Vec<T> mean = sum_everywhere<T>(sum);
  for (int64_t j = 0; j < end; j += kLanes<T>) {
    store<T>(slopes + j, load<T>(weights + j) * (load<T>(slopes + j) - mean));
  }
}

// Adds a product's vectors to rows; the first block writes them.
template <class T>
struct AddToRows {
  T* rows;
  int64_t width;
  bool first;
  TOKENDETR_INLINE void operator()(int64_t i, int64_t v, Vec<T> sum) const {
    T* to = rows + i * width + v * kLanes<T>;
    store<T>(to, first ? sum : load<T>(to) + sum);
  }
};

// The logits' gradients of a block, and what follows from them alone: the gradients of both biases.
template <class T>
void slopes_of_block(const Problem& problem, const Inputs& in, int64_t container, const int32_t* slots,
                     int64_t queries, BackwardScratch<T>& scratch, T* table_gradient) {
  const KeyBiases<T>& biases = scratch.biases;
  const int64_t length = row_length<T>(biases.keys), end = biases.vectors * kLanes<T>;
  T inverse[kBlock];
  softmax_rows<T>(problem, in, container, slots, queries, biases, scratch.weights, length, inverse);
  for (int64_t i = 0; i < queries; ++i) {
    T* slopes = scratch.slopes + i * length;
    slopes_of_row<T>(biases, inverse[i], scratch.weights + i * length, slopes);
    for (int64_t j = 0; j < end; j += kLanes<T>) {
      store<T>(scratch.column_sums + j, load<T>(scratch.column_sums + j) + load<T>(slopes + j));
    }
    if (table_gradient == nullptr) continue;
    const int32_t* position = in.position + (container * problem.slots + slots[i]) * 2;
    find_in_table<T>(biases, position[0], position[1]);
    for (int64_t j = 0; j < biases.keys; ++j) table_gradient[biases.index[j]] += slopes[j];
  }
}

template <class T, class S>
void backward_block(const Problem& problem, const Inputs& in, int64_t container, int64_t head, const int32_t* slots,
                    int64_t queries, bool first, BackwardScratch<T>& scratch, const Gradients& gradients) {
  const KeyBiases<T>& biases = scratch.biases;
  const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = row_length<T>(biases.keys);
  const int64_t wide = width / kLanes<T>;
  const T scale = static_cast<T>(problem.scale);
  gather_rows<T, S>(Head<const S>(in.query, container, head), slots, queries, problem.width, scale, scratch.query);
  gather_rows<T, S>(Head<const S>(gradients.output, container, head), slots, queries, problem.width, T(1),
                    scratch.incoming);
  multiply<T>({scratch.query, width, 1}, {scratch.keys, length}, queries, problem.width, biases.vectors,
              StoreRows<T>{scratch.weights, length});
  multiply<T>({scratch.incoming, width, 1}, {scratch.values, length}, queries, problem.width, biases.vectors,
              StoreRows<T>{scratch.slopes, length});
  slopes_of_block<T>(problem, in, container, slots, queries, scratch, static_cast<T*>(gradients.table));
  multiply<T>({scratch.slopes, 1, length}, {scratch.query, width}, biases.keys, queries, wide,
              AddToRows<T>{scratch.key_gradient, width, first});
  multiply<T>({scratch.weights, 1, length}, {scratch.incoming, width}, biases.keys, queries, wide,
              AddToRows<T>{scratch.value_gradient, width, first});
  multiply<T>({scratch.slopes, length, 1}, {scratch.key, width}, queries, biases.keys, wide,
              StoreRows<T>{scratch.query, width});
  scatter_rows<T, S>(problem, scratch.query, slots, queries, [scale](int64_t) { return scale; },
                     Head<S>(gradients.query, container, head));
}

template <class T, class S>
void backward_segment(const Problem& problem, const Inputs& in, int64_t container, int64_t head, const int32_t* slots,
                      int64_t count, BackwardScratch<T>& scratch, const Gradients& gradients) {
  const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = row_length<T>(count);
  KeyBiases<T>& biases = scratch.biases;
  biases.fill(problem, in, container, head, slots, count);
  const int64_t padded = biases.vectors * kLanes<T>;
  gather_rows<T, S>(Head<const S>(in.value, container, head), slots, count, problem.width, T(1), scratch.key);
  transpose<T>(scratch.key, padded, width, scratch.values, length);
  gather_rows<T, S>(Head<const S>(in.key, container, head), slots, count, problem.width, T(1), scratch.key);
  transpose<T>(scratch.key, padded, width, scratch.keys, length);
  std::memset(scratch.column_sums, 0, static_cast<size_t>(padded) * sizeof(T));
  for (int64_t first = 0; first < count; first += kBlock) {
    backward_block<T, S>(problem, in, container, head, slots + first, least(kBlock, count - first), first == 0,
                         scratch, gradients);
  }
  const auto as_it_is = [](int64_t) { return T(1); };
  scatter_rows<T, S>(problem, scratch.key_gradient, slots, count, as_it_is,
                     Head<S>(gradients.key, container, head));
  scatter_rows<T, S>(problem, scratch.value_gradient, slots, count, as_it_is,
                     Head<S>(gradients.value, container, head));
  if (gradients.key_bias == nullptr) return;
  T* to = static_cast<T*>(gradients.key_bias) + (container * problem.heads + head) * problem.slots;
  for (int64_t j = 0; j < count; ++j) to[slots[j]] = scratch.column_sums[j];
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
