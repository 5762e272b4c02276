// The backward of some heads of one container. Attention weights are computed again, so that the forward saves nothing.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

template <class T>
struct BackwardScratch {
  Carver carver;
  Keys<T> keys;
  T *query, *incoming;               // a block's rows
  T* key;                            // keys in rows
  T *key_columns, *value_columns;    // keys and values in columns
  T* value_tail;                     // the last values in rows
  T *weights, *slopes;               // [block, keys]: e^logit and the gradient of the logits
  T *key_gradient, *value_gradient;  // rows, sums over the blocks
  T* column_sums;                    // of slopes

  BackwardScratch(const Problem& problem, int64_t longest, bool has_table, void* base)
      : carver(base), keys(carver, longest, has_table) {
    const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = row_length<T>(longest);
    query = carver.take<T>((kBlock + kLanes<T>)*width);
    incoming = carver.take<T>((kBlock + kLanes<T>)*width);
    key = carver.take<T>(length * width);
    key_columns = carver.take<T>(width * length);
    value_columns = carver.take<T>(width * length);
    value_tail = carver.take<T>(kLanes<T> * width);
    weights = carver.take<T>(kBlock * length);
    slopes = carver.take<T>(kBlock * length);
    key_gradient = carver.take<T>(length * width);
    value_gradient = carver.take<T>(length * width);
    column_sums = carver.take<T>(length);
  }
};

// From e^logit and the gradients of the weights, both times one by the sum, to those of the logits, over the latter:
// with weights P and their gradients dP, P * (dP - sum of P * dP).
template <class T>
TOKENDETR_INLINE void make_slopes(const Keys<T>& keys, int64_t queries, const T* weights, T* slopes,
                                  const Tails<T>& tail_weights, Tails<T>& tail_slopes, const PerQuery<T>& inverse) {
  Partial<T> sums;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t row = i * keys.length;
    Vec<T> sum{};
    for (int64_t j = 0; j < keys.whole(); j += kLanes<T>) sum += load<T>(weights + row + j) * load<T>(slopes + row + j);
    sums.vector[i] = sum;
  }
  sums.finish(queries);
  PerQuery<T> mean;
  for (int64_t first = 0; first < queries; first += kLanes<T>) {
    Vec<T> sum = fold<T>(sums.vector + first, Sum{});
    for (int64_t t = 0; t < keys.tail; ++t) {
      sum += load<T>(tail_weights[t].number + first) * load<T>(tail_slopes[t].number + first);
    }
    sum *= load<T>(inverse.number + first);
    store<T>(mean.number + first, sum);
    for (int64_t t = 0; t < keys.tail; ++t) {
      T* tail = tail_slopes[t].number + first;
      store<T>(tail, load<T>(tail_weights[t].number + first) * (load<T>(tail) - sum));
    }
  }
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t row = i * keys.length;
    const Vec<T> own = broadcast<T>(mean.number[i]);
    for (int64_t j = 0; j < keys.whole(); j += kLanes<T>) {
      store<T>(slopes + row + j, load<T>(weights + row + j) * (load<T>(slopes + row + j) - own));
    }
  }
  put_tails<T, T>(keys, queries, tail_slopes, slopes, keys.length);
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

// The gradient of a head's table, or null.
template <class T>
TOKENDETR_INLINE T* table_of(const Problem& problem, const Gradients& gradients, int64_t head) {
  if (gradients.table == nullptr) return nullptr;
  return static_cast<T*>(gradients.table) + head * problem.side() * problem.side();
}

// The gradients of both biases follow from those of a block's logits alone.
template <class T>
void add_to_biases(const Keys<T>& keys, int64_t queries, const T* slopes, T* table_gradient, T* column_sums) {
  for (int64_t i = 0; i < queries; ++i) {
    const T* row = slopes + i * keys.length;
    if (column_sums != nullptr) {
      for (int64_t j = 0; j < keys.count; ++j) column_sums[j] += row[j];
    }
    if (table_gradient == nullptr) continue;
    const int32_t* index = keys.index + i * keys.length;
    for (int64_t j = 0; j < keys.count; ++j) table_gradient[index[j]] += row[j];
  }
}

template <class T, class S>
void backward_block(const Problem& problem, const Inputs& in, const Place& place, bool first,
                    BackwardScratch<T>& scratch, const Gradients& gradients) {
  const Rows<const S> query(in.query, place), key(in.key, place), value(in.value, place);
  const Rows<const S> incoming(gradients.output, place);
  const Rows<S> to_query(gradients.query, place), to_key(gradients.key, place), to_value(gradients.value, place);
  const Keys<T>& keys = scratch.keys;
  const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = keys.length, queries = place.count;
  const Always<T> scale{static_cast<T>(problem.scale)};
  Tails<T> tail_weights, tail_slopes;
  PerQuery<T> inverse;
  gather_rows<T, S>(query, scale, scratch.query);
  multiply<T>({scratch.query, width, 1}, {scratch.key_columns, length}, queries, problem.width, keys.vectors,
              StoreAndFetch<T, S>{{scratch.weights, length}, key, to_key});
  multiply_tails<T>(scratch.query, queries, scratch.key + keys.whole() * width, width, keys.tail, tail_weights);
  softmax_rows<T>(keys, queries, scratch.weights, tail_weights, inverse, incoming);
  gather_rows<T, S>(incoming, [&](int64_t i) { return inverse.number[i]; }, scratch.incoming);
  multiply<T>({scratch.incoming, width, 1}, {scratch.value_columns, length}, queries, problem.width, keys.vectors,
              StoreAndFetch<T, S>{{scratch.slopes, length}, value, to_value});
  multiply_tails<T>(scratch.incoming, queries, scratch.value_tail, width, keys.tail, tail_slopes);
  make_slopes<T>(keys, queries, scratch.weights, scratch.slopes, tail_weights, tail_slopes, inverse);
  add_to_biases<T>(keys, queries, scratch.slopes, table_of<T>(problem, gradients, place.head),
                   gradients.key_bias == nullptr ? nullptr : scratch.column_sums);
  multiply<T>({scratch.slopes, 1, length}, {scratch.query, width}, keys.count, queries, width / kLanes<T>,
              AddToRows<T>{scratch.key_gradient, width, first});
  multiply<T>({scratch.weights, 1, length}, {scratch.incoming, width}, keys.count, queries, width / kLanes<T>,
              AddToRows<T>{scratch.value_gradient, width, first});
  multiply<T>({scratch.slopes, length, 1}, {scratch.key, width}, queries, keys.count, width / kLanes<T>,
              StoreAndFetch<T, S>{{scratch.query, width}, query, to_query});
  scatter_rows<T, S>(scratch.query, scale, to_query);
}

template <class T, class S>
void backward_head(const Problem& problem, const Inputs& in, const Place& all, bool is_first,
                   BackwardScratch<T>& scratch, const Gradients& gradients) {
  const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>;
  const Always<T> as_it_is{T(1)};
  Keys<T>& keys = scratch.keys;
  keys.choose_head(problem, in, all.head);
  gather_columns<T, S>({in.value, all}, keys.vectors, scratch.value_columns, keys.length);
  gather_rows<T, S>({in.value, keys.tail_of(all)}, as_it_is, scratch.value_tail);
  gather_rows<T, S>({in.key, all}, as_it_is, scratch.key);
  transpose<T>(scratch.key, keys.whole(), width, scratch.key_columns, keys.length);
  std::memset(scratch.column_sums, 0, static_cast<size_t>(all.count) * sizeof(T));
  for_each_block(all, [&](const Place& block) {
    keys.find_in_table(problem, in, block, is_first);
    backward_block<T, S>(problem, in, block, block.slots == all.slots, scratch, gradients);
  });
  scatter_rows<T, S>(scratch.key_gradient, as_it_is, {gradients.key, all});
  scatter_rows<T, S>(scratch.value_gradient, as_it_is, {gradients.value, all});
  if (gradients.key_bias == nullptr) return;
  T* to = static_cast<T*>(gradients.key_bias) + (all.container * problem.heads + all.head) * problem.slots;
  for (int64_t j = 0; j < all.count; ++j) to[all.slots[j]] = scratch.column_sums[j];
}

template <class T, class S>
void backward_segment(const Problem& problem, const Inputs& in, int64_t container, const Heads& heads,
                      const int32_t* slots, int64_t count, BackwardScratch<T>& scratch, const Gradients& gradients) {
  scratch.keys.fill(problem, in, container, slots, count);
  for (int64_t head = heads.first; head < heads.end; ++head) {
    backward_head<T, S>(problem, in, {container, head, slots, count, problem.width}, head == heads.first, scratch,
                        gradients);
  }
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
