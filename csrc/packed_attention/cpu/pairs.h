// The forward in bfloat16 on processors that multiply it in pairs: two numbers of a row with two of a column at once,
// with sums in float32. The attention weights are rounded to bfloat16 for the second product.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

using tokendetr::packed::kAvx512Kernels;

constexpr int64_t kTile = 16;       // rows of a tile, and numbers or pairs in one
constexpr int64_t kTileDepth = 32;  // numbers of bfloat16 in a vector, and in a tile's row

// Rows of bfloat16; element (k, n) of the right factor is the low (k even) or high half of pair (k / 2, n).
struct PairsLeft {
  const BFloat16* data;
  int64_t row;
};
struct PairsRight {
  const uint32_t* data;
  int64_t row;
};

TOKENDETR_INLINE int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

struct PairScratch {
  Carver carver;
  Keys<float> keys;
  BFloat16* query;    // a block's rows
  uint32_t* columns;  // keys: pairs of channels by keys
  uint32_t* value;    // pairs of keys by channels
  float *scores, *sums;
  BFloat16* shares;

  PairScratch(const Problem& problem, int64_t longest, bool has_table, void* base)
      : carver(base), keys(carver, longest, has_table) {
    const int64_t width = problem.width, length = row_length<float>(longest), depth = rounded_up(longest, kTileDepth);
    query = carver.take<BFloat16>(kBlock * width);
    columns = carver.take<uint32_t>(width / 2 * length);
    value = carver.take<uint32_t>(depth / 2 * width);
    scores = carver.take<float>(kBlock * length);
    sums = carver.take<float>(kBlock * width);
    shares = carver.take<BFloat16>(kBlock * depth);
  }

  // Numbers in a row of shares, whose end behind the keys is zeros.
  int64_t depth() const { return rounded_up(keys.count, kTileDepth); }
};

// 32 numbers of bfloat16, as bits that may be moved.
TOKENDETR_INLINE Vec<float> load_bits(const BFloat16* from) {
  Vec<float> bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

// Rows as they are, then rows of zeros up to whole tiles.
inline void gather_row_pairs(const Rows<const BFloat16>& from, BFloat16* to) {
  const size_t bytes = static_cast<size_t>(from.width) * sizeof(BFloat16);
  const int64_t rows = rounded_up(from.count, kTile);
  for (int64_t i = 0; i < from.count; ++i) {
    for (int64_t c = 0; c < from.width; c += kTileDepth) {
      store<float>(reinterpret_cast<float*>(to + i * from.width + c), load_bits(from.at(i) + c));
    }
  }
  std::memset(to + from.count * from.width, 0, static_cast<size_t>(rows - from.count) * bytes);
}

// The keys' pairs of channels as columns: bits that are moved, never numbers.
inline void gather_column_pairs(const Rows<const BFloat16>& from, uint32_t* to, int64_t to_row) {
  for (int64_t first = 0; first < from.count; first += kTile) {
    for (int64_t c = 0; c < from.width; c += kTileDepth) {
      Vec<float> square[kTile];
#pragma GCC unroll 16
      for (int k = 0; k < kTile; ++k) {
        const bool exists = first + k < from.count;
        square[k] = exists ? load_bits(from.at(first + k) + c) : Vec<float>{};
      }
      transpose_square<float>(square);
#pragma GCC unroll 16
      for (int k = 0; k < kTile; ++k) {
        store<float>(reinterpret_cast<float*>(to + (c / 2 + k) * to_row + first), square[k]);
      }
    }
  }
}

// The values' rows in pairs, then rows of zeros up to `depth`.
inline void gather_value_pairs(const Rows<const BFloat16>& from, int64_t depth, uint32_t* to) {
  using Bits = Beside<float, uint32_t>;
  const auto bits = [&](int64_t row, int64_t c) {
    if (row >= from.count) return Bits{};
    return __builtin_convertvector((load_beside<float, uint16_t>(&from.at(row)[c].bits)), Bits);
  };
  for (int64_t row = 0; row < depth; row += 2, to += from.width) {
    for (int64_t c = 0; c < from.width; c += kTile) {
      store_beside<float, uint32_t>(to + c, bits(row, c) | (bits(row + 1, c) << 16));
    }
  }
}

// A block's rows in all four tensors, of which those of the next container are fetched.
struct PairRows {
  Rows<const BFloat16> query, key, value;
  Rows<BFloat16> output;
  TOKENDETR_INLINE void fetch_next(int64_t row) const {
    query.fetch_next(row);
    key.fetch_next(row);
    value.fetch_next(row);
    output.fetch_next(row);
  }
};

template <class Products>
void forward_pair_block(const Products& products, const Problem& problem, const Inputs& in, const Place& place,
                        PairScratch& scratch, const Write& output) {
  const PairRows rows{{in.query, place}, {in.key, place}, {in.value, place}, {output, place}};
  const Keys<float>& keys = scratch.keys;
  const int64_t queries = place.count, width = problem.width, length = keys.length, depth = scratch.depth();
  const float scale = static_cast<float>(problem.scale);
  gather_row_pairs(rows.query, scratch.query);
  products.multiply({scratch.query, width}, {scratch.columns, length}, queries, keys.count, width,
                    {scratch.scores, length});
  Tails<float> tails;
  for (int64_t t = 0; t < keys.tail; ++t) {
    for (int64_t i = 0; i < rounded_up(queries, kTile); ++i) {
      tails[t].number[i] = i < queries ? scratch.scores[i * length + keys.whole() + t] * scale : 0.0f;
    }
  }
  PerQuery<float> largest, inverse;
  make_logits<float>(keys, queries, Times<float>{broadcast<float>(scale)}, scratch.scores, tails, largest);
  exponentials<float>(keys, queries, largest, scratch.scores, BlockRows<BFloat16>{scratch.shares, depth}, tails,
                      inverse, rows);
  products.multiply({scratch.shares, depth}, {scratch.value, width}, queries, width, keys.count, {scratch.sums, width});
  scatter_rows<float, BFloat16>(scratch.sums, [&](int64_t i) { return inverse.number[i]; }, rows.output);
}

template <class Products>
void forward_pair_segment(const Products& products, const Problem& problem, const Inputs& in, int64_t container,
                          const Heads& heads, const int32_t* slots, int64_t count, PairScratch& scratch,
                          const Write& output) {
  Keys<float>& keys = scratch.keys;
  keys.fill(problem, in, container, slots, count);
  keys.biased = 0;  // all logits are scaled where biases are added
  const int64_t depth = scratch.depth();
  std::memset(scratch.shares, 0, static_cast<size_t>(kBlock * depth) * sizeof(BFloat16));
  for (int64_t head = heads.first; head < heads.end; ++head) {
    const Place all{container, head, slots, count, problem.width};
    keys.choose_head(problem, in, head);
    gather_column_pairs({in.key, all}, scratch.columns, keys.length);
    gather_value_pairs({in.value, all}, depth, scratch.value);
    for_each_block(all, [&](const Place& block) {
      keys.find_in_table(problem, in, block, head == heads.first);
      forward_pair_block(products, problem, in, block, scratch, output);
    });
  }
}

// A table's functions: the forward in bfloat16 multiplies pairs, all else is that of AVX-512. Products: multiply(left,
// right, rows, columns, depth, product) while an object of it lives.
template <class Products>
struct PairKernels {
  static bool fits(const Problem& problem, Storage storage) {
    return storage == Storage::kBFloat16 && problem.width % kTileDepth == 0;
  }

  static int64_t forward_bytes(const Problem& problem, Storage storage, int64_t longest) {
    if (!fits(problem, storage)) return kAvx512Kernels.forward_bytes(problem, storage, longest);
    return PairScratch(problem, longest, true, nullptr).carver.bytes();
  }

  static int64_t backward_bytes(const Problem& problem, Storage storage, int64_t longest) {
    return kAvx512Kernels.backward_bytes(problem, storage, longest);
  }

  static void forward(const Problem& problem, Storage storage, const Inputs& in, const Segments& segments,
                      int64_t container, const Heads& heads, void* memory, const Write& output) {
    if (!fits(problem, storage)) {
      return kAvx512Kernels.forward(problem, storage, in, segments, container, heads, memory, output);
    }
    PairScratch scratch(problem, segments.longest(), in.table != nullptr, memory);
    const Products products{};
    for (int64_t s = 0; s < segments.count; ++s) {
      const int32_t begin = segments.starts[s], count = segments.starts[s + 1] - begin;
      forward_pair_segment(products, problem, in, container, heads, segments.slots + begin, count, scratch, output);
    }
  }

  static void backward(const Problem& problem, Storage storage, const Inputs& in, const Segments& segments,
                       int64_t container, const Heads& heads, void* memory, const Gradients& gradients) {
    kAvx512Kernels.backward(problem, storage, in, segments, container, heads, memory, gradients);
  }
};

}  // namespace tokendetr::TOKENDETR_ISA::packed
