// From products of a query with the keys of its segment to attention weights.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

// Takes aligned pieces of scratch memory; from a null pointer it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// What is added to the logits of a segment's keys.
template <class T>
struct KeyBiases {
  T* bias;          // the key bias, -inf behind the last key
  int32_t* y;       // positions of the keys
  int32_t* x;
  int32_t* index;   // of the current query's pairs in the table
  const T* table;   // of the head, or null
  int32_t reach;
  int64_t keys, vectors;

  KeyBiases(Carver& carver, int64_t longest, bool has_table)
      : bias(carver.take<T>(row_length<T>(longest))),
        y(carver.take<int32_t>(has_table ? row_length<T>(longest) : 0)),
        x(carver.take<int32_t>(has_table ? row_length<T>(longest) : 0)),
        index(carver.take<int32_t>(has_table ? row_length<T>(longest) : 0)) {}

  void fill(const Problem& problem, const Inputs& in, int64_t container, int64_t head, const int32_t* slots,
            int64_t count) {
    keys = count;
    vectors = whole_vectors<T>(count);
    reach = static_cast<int32_t>(problem.reach);
    table = in.table == nullptr ? nullptr : static_cast<const T*>(in.table) + head * problem.side() * problem.side();
    const T* key_bias = static_cast<const T*>(in.key_bias);
    for (int64_t j = 0; j < count; ++j) {
      bias[j] = key_bias == nullptr ? T(0) : key_bias[container * problem.slots + slots[j]];
    }
    for (int64_t j = count; j < vectors * kLanes<T>; ++j) bias[j] = -static_cast<T>(__builtin_inf());
    if (table == nullptr) return;
    const int32_t* position = in.position + container * problem.slots * 2;
    for (int64_t j = 0; j < vectors * kLanes<T>; ++j) {
      const int32_t slot = slots[j < count ? j : 0];
      y[j] = position[2 * slot];
      x[j] = position[2 * slot + 1];
    }
  }
};

// query - keys, clipped to [-reach, reach] also where the difference overflows.
template <class T>
TOKENDETR_INLINE Index<T> clipped_offset(int32_t query, const int32_t* keys, int32_t reach) {
  using Bits = Beside<T, uint32_t>;
  const Index<T> from = Index<T>{} + query, key = load_beside<T, int32_t>(keys);
  const Index<T> wrapped = reinterpret_cast<Index<T>>(reinterpret_cast<Bits>(from) - reinterpret_cast<Bits>(key));
  const Index<T> overflows = (from ^ key) & (from ^ wrapped);
  const Index<T> farthest = (from >> 31) ^ 0x7fffffff;
  const Index<T> offset = overflows < 0 ? farthest : wrapped;
  const Index<T> most = Index<T>{} + reach;
  const Index<T> low = offset < -most ? -most : offset;
  return low > most ? most : low;
}

template <class T>
TOKENDETR_INLINE void find_in_table(const KeyBiases<T>& keys, int32_t y, int32_t x) {
  const int32_t reach = keys.reach, side = 2 * reach + 1;
  for (int64_t j = 0; j < keys.vectors * kLanes<T>; j += kLanes<T>) {
    const Index<T> row = clipped_offset<T>(y, keys.y + j, reach) + reach;
    const Index<T> column = clipped_offset<T>(x, keys.x + j, reach) + reach;
    store_beside<T, int32_t>(keys.index + j, row * side + column);
  }
}

template <class T>
TOKENDETR_INLINE Vec<T> gather(const T* table, const int32_t* index) {
  Vec<T> result;
#if TOKENDETR_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    const __m512i at = _mm512_loadu_si512(index);
    result = reinterpret_cast<Vec<T>>(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, at, table, 4));
  } else {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
    result = reinterpret_cast<Vec<T>>(_mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xff, at, table, 8));
  }
#else
  for (int lane = 0; lane < kLanes<T>; ++lane) result[lane] = table[index[lane]];
#endif
  return result;
}

template <class T>
TOKENDETR_INLINE Vec<T> greater(Vec<T> a, Vec<T> b) {  // one instruction: of NaN and b it is b
  return a > b ? a : b;
}

template <class T, int kDistance = kLanes<T> / 2>
TOKENDETR_INLINE Vec<T> greatest_everywhere(Vec<T> vector) {
  if constexpr (kDistance == 0) {
    return vector;
  } else {
    return greatest_everywhere<T, kDistance / 2>(
        greater<T>(vector, shuffle<T>(vector, vector, PickPartner<kDistance>{})));
  }
}

// A NaN among the logits need not reach the largest of them: it reaches the sum. A row of -inf gets 0.
template <class T>
TOKENDETR_INLINE T largest_logit(const KeyBiases<T>& keys, T* row) {
  Vec<T> most = broadcast<T>(-static_cast<T>(__builtin_inf()));
  for (int64_t j = 0; j < keys.vectors * kLanes<T>; j += kLanes<T>) {
    Vec<T> logit = load<T>(row + j) + load<T>(keys.bias + j);
    if (keys.table != nullptr) logit += gather<T>(keys.table, keys.index + j);
    store<T>(row + j, logit);
    most = greater<T>(logit, most);
  }
  const T largest = greatest_everywhere<T>(most)[0];
  return largest == -static_cast<T>(__builtin_inf()) ? T(0) : largest;
}

// Makes the row e^(logit - largest), 0 behind the last key, and returns one by its sum.
template <class T>
TOKENDETR_INLINE T exponentials(const KeyBiases<T>& keys, T largest, T* row) {
  const Vec<T> zero = broadcast<T>(largest);
  Vec<T> sum{};
  for (int64_t j = 0; j < keys.vectors * kLanes<T>; j += kLanes<T>) {
    const Vec<T> share = exp_nonpositive(load<T>(row + j) - zero);
    store<T>(row + j, share);
    sum += share;
  }
  const T total = sum_everywhere<T>(sum)[0];
  return total == T(0) ? T(0) : T(1) / total;
}

constexpr int64_t kBlock = 64;  // queries whose scores exist at a time

// The softmax of a block of rows but for the factors `inverse`. Two short loops: the rows' chains of operations overlap.
template <class T>
void softmax_rows(const Problem& problem, const Inputs& in, int64_t container, const int32_t* slots, int64_t queries,
                  const KeyBiases<T>& biases, T* rows, int64_t length, T* inverse) {
  T largest[kBlock];
  for (int64_t i = 0; i < queries; ++i) {
    if (biases.table != nullptr) {
      const int32_t* position = in.position + (container * problem.slots + slots[i]) * 2;
      find_in_table<T>(biases, position[0], position[1]);
    }
    largest[i] = largest_logit<T>(biases, rows + i * length);
  }
  for (int64_t i = 0; i < queries; ++i) inverse[i] = exponentials<T>(biases, largest[i], rows + i * length);
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
