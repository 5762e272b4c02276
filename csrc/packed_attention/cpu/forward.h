// The forward of some heads of one container: segment after segment, blocks of queries against all keys of a segment.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

template <class T>
struct ForwardScratch {
  Carver carver;
  Keys<T> keys;
  T *query, *value;   // a block's rows; values in rows
  T *columns, *tail;  // keys in columns, and those of the tail in rows
  T* scores;

  ForwardScratch(const Problem& problem, int64_t longest, bool has_table, void* base)
      : carver(base), keys(carver, longest, has_table) {
    const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, length = row_length<T>(longest);
    query = carver.take<T>((kBlock + kLanes<T>)*width);
    value = carver.take<T>(length * width);
    columns = carver.take<T>(width * length);
    tail = carver.take<T>(kLanes<T> * width);
    scores = carver.take<T>(kBlock * length);
  }
};

template <class T, class S>
void forward_block(const Problem& problem, const Inputs& in, const Place& place, ForwardScratch<T>& scratch,
                   const Write& output) {
  const Rows<const S> query(in.query, place), key(in.key, place), value(in.value, place);
  const Rows<S> to(output, place);
  const Keys<T>& keys = scratch.keys;
  const int64_t width = whole_vectors<T>(problem.width) * kLanes<T>, queries = place.count;
  gather_rows<T, S>(query, Always<T>{static_cast<T>(problem.scale)}, scratch.query);
  multiply<T>({scratch.query, width, 1}, {scratch.columns, keys.length}, queries, problem.width, keys.vectors,
              StoreAndFetch<T, S>{{scratch.scores, keys.length}, key, to});
  Tails<T> tails;
  PerQuery<T> inverse;
  multiply_tails<T>(scratch.query, queries, scratch.tail, width, keys.tail, tails);
  softmax_rows<T>(keys, queries, scratch.scores, tails, inverse, value);
  multiply<T>({scratch.scores, keys.length, 1}, {scratch.value, width}, queries, keys.count, width / kLanes<T>,
              StoreAndFetch<T, S>{{scratch.query, width}, query, to});
  scatter_rows<T, S>(scratch.query, [&](int64_t i) { return inverse.number[i]; }, to);
}

template <class T, class S>
void forward_segment(const Problem& problem, const Inputs& in, int64_t container, const Heads& heads,
                     const int32_t* slots, int64_t count, ForwardScratch<T>& scratch, const Write& output) {
  Keys<T>& keys = scratch.keys;
  keys.fill(problem, in, container, slots, count);
  for (int64_t head = heads.first; head < heads.end; ++head) {
    const Place all{container, head, slots, count, problem.width};
    keys.choose_head(problem, in, head);
    gather_columns<T, S>({in.key, all}, keys.vectors, scratch.columns, keys.length);
    gather_rows<T, S>({in.key, keys.tail_of(all)}, Always<T>{T(1)}, scratch.tail);
    gather_rows<T, S>({in.value, all}, Always<T>{T(1)}, scratch.value);
    for_each_block(all, [&](const Place& block) {
      keys.find_in_table(problem, in, block, head == heads.first);
      forward_block<T, S>(problem, in, block, scratch, output);
    });
  }
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
