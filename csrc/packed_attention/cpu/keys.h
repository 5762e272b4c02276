// The keys of a segment and the biases of their logits.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

// Divides scratch memory into aligned pieces; with a null pointer it only counts their bytes.
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

constexpr int64_t kBlock = 64;  // queries whose scores exist at a time

// Keys behind the last whole vector that are handled one by one, since another vector would be mostly empty.
template <class T>
constexpr int64_t kMostTail = kLanes<T> / 4;

// query - keys, clipped to [-reach, reach] also if the difference overflows.
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

// The keys of a segment and the biases of their logits: `vectors` vectors, the last of which may end in padding, and
// then `tail` single keys. All but `table` is the same for all heads.
template <class T>
struct Keys {
  T* bias;     // the key bias, -inf behind the last key
  int32_t* y;  // positions of the keys
  int32_t* x;
  int32_t* index;  // [kBlock, length] of the pairs of a block in the table
  const T* table;  // of the head, or null
  int64_t count, vectors, tail, length;
  int64_t biased;  // the first vector that has a bias

  Keys(Carver& carver, int64_t longest, bool has_table)
      : bias(carver.take<T>(row_length<T>(longest))),
        y(carver.take<int32_t>(has_table ? row_length<T>(longest) : 0)),
        x(carver.take<int32_t>(has_table ? row_length<T>(longest) : 0)),
        index(carver.take<int32_t>(has_table ? kBlock * row_length<T>(longest) : 0)) {}

  int64_t whole() const { return vectors * kLanes<T>; }  // numbers in the vectors

  void fill(const Problem& problem, const Inputs& in, int64_t container, const int32_t* slots, int64_t keys) {
    count = keys;
    length = row_length<T>(count);
    const int64_t rest = count % kLanes<T>, all = whole_vectors<T>(count) * kLanes<T>;
    tail = count > rest && rest <= kMostTail<T> ? rest : 0;
    vectors = tail > 0 ? count / kLanes<T> : whole_vectors<T>(count);
    const bool everywhere = in.table != nullptr || in.key_bias != nullptr;
    biased = everywhere ? 0 : vectors - (whole() > count ? 1 : 0);
    const T* key_bias = static_cast<const T*>(in.key_bias);
    for (int64_t j = 0; j < count; ++j) {
      bias[j] = key_bias == nullptr ? T(0) : key_bias[container * problem.slots + slots[j]];
    }
    for (int64_t j = count; j < all; ++j) bias[j] = -static_cast<T>(__builtin_inf());
    if (in.table == nullptr) return;
    const int32_t* position = in.position + container * problem.slots * 2;
    for (int64_t j = 0; j < all; ++j) {
      const int32_t slot = slots[j < count ? j : 0];
      y[j] = position[2 * slot];
      x[j] = position[2 * slot + 1];
    }
  }

  void choose_head(const Problem& problem, const Inputs& in, int64_t head) {
    table = in.table == nullptr ? nullptr : static_cast<const T*>(in.table) + head * problem.side() * problem.side();
  }

  Place tail_of(const Place& all) const { return {all.container, all.head, all.slots + whole(), tail, all.width}; }

  // Looks up a block's pairs in the table. They are the same for all heads: those of a single block are kept.
  void find_in_table(const Problem& problem, const Inputs& in, const Place& block, bool is_first_head) {
    if (table == nullptr || (!is_first_head && count <= kBlock)) return;
    const int32_t reach = static_cast<int32_t>(problem.reach), side = 2 * reach + 1;
    for (int64_t i = 0; i < block.count; ++i) {
      const int32_t* position = in.position + (block.container * problem.slots + block.slots[i]) * 2;
      for (int64_t j = 0; j < count; j += kLanes<T>) {
        const Index<T> row = clipped_offset<T>(position[0], y + j, reach) + reach;
        const Index<T> column = clipped_offset<T>(position[1], x + j, reach) + reach;
        store_beside<T, int32_t>(index + i * length + j, row * side + column);
      }
    }
  }
};

// Calls work(place) for the blocks of queries of a segment.
template <class Work>
TOKENDETR_INLINE void for_each_block(const Place& all, const Work& work) {
  for (int64_t first = 0; first < all.count; first += kBlock) {
    const int64_t rest = all.count - first;
    work(Place{all.container, all.head, all.slots + first, rest < kBlock ? rest : kBlock, all.width});
  }
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
