// The forward in bfloat16 with tiles (AMX): both products of a block in the processor's matrix unit, with sums in
// float32. The attention weights are rounded to bfloat16 for the second product.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

constexpr int64_t kTile = 16;       // rows of a tile, and numbers or pairs in one
constexpr int64_t kTileDepth = 32;  // products that one instruction sums: numbers of bfloat16 in a tile's row

// Eight whole tiles while it lives; afterwards the tiles are those of the code around.
class Tiles {
 public:
  Tiles() {
    Config own{};
    own.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      own.row_bytes[tile] = 64;
      own.rows[tile] = kTile;
    }
    _tile_storeconfig(&before_);
    _tile_loadconfig(&own);
  }
  ~Tiles() {
    if (before_.palette == 0) {
      _tile_release();
    } else {
      _tile_loadconfig(&before_);
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  Config before_{};
};

// Rows of bfloat16; element (k, n) of the right factor is the low (k even) or high half of pair (k / 2, n).
struct TileLeft {
  const BFloat16* data;
  int64_t row;
};
struct TileRight {
  const uint32_t* data;
  int64_t row;
};

// kRows times kColumns tiles of a product with `depth` a multiple of kTileDepth.
template <int kRows, int kColumns>
TOKENDETR_INLINE void multiply_some_tiles(const TileLeft& left, const TileRight& right, int64_t depth,
                                          const BlockRows<float>& product) {
  const size_t left_bytes = static_cast<size_t>(left.row) * 2, right_bytes = static_cast<size_t>(right.row) * 4;
  const size_t bytes = static_cast<size_t>(product.length) * 4;
  __asm__ volatile("" ::: "memory");  // what is loaded has been stored
  _tile_zero(0);
  if constexpr (kColumns > 1) _tile_zero(1);
  if constexpr (kRows > 1) _tile_zero(2);
  if constexpr (kRows > 1 && kColumns > 1) _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    const BFloat16* a = left.data + k;
    const uint32_t* b = right.data + k / 2 * right.row;
    _tile_loadd(4, a, left_bytes);
    _tile_loadd(6, b, right_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns > 1) {
      _tile_loadd(7, b + kTile, right_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows > 1) {
      _tile_loadd(5, a + kTile * left.row, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kRows > 1 && kColumns > 1) _tile_dpbf16ps(3, 5, 7);
  }
  float* second = product.data + kTile * product.length;
  _tile_stored(0, product.data, bytes);
  if constexpr (kColumns > 1) _tile_stored(1, product.data + kTile, bytes);
  if constexpr (kRows > 1) _tile_stored(2, second, bytes);
  if constexpr (kRows > 1 && kColumns > 1) _tile_stored(3, second + kTile, bytes);
  __asm__ volatile("" ::: "memory");
}

// The product of `rows` rows with `columns` columns, both rounded up to whole tiles.
TOKENDETR_INLINE void multiply_tiles(const TileLeft& left, const TileRight& right, int64_t rows, int64_t columns,
                                     int64_t depth, const BlockRows<float>& product) {
  for (int64_t i = 0; i < rows; i += 2 * kTile) {
    for (int64_t j = 0; j < columns; j += 2 * kTile) {
      const TileLeft a{left.data + i * left.row, left.row};
      const TileRight b{right.data + j, right.row};
      const BlockRows<float> to{product.data + i * product.length + j, product.length};
      const bool two_rows = rows - i > kTile, two_columns = columns - j > kTile;
      if (two_rows && two_columns) {
        multiply_some_tiles<2, 2>(a, b, depth, to);
      } else if (two_rows) {
        multiply_some_tiles<2, 1>(a, b, depth, to);
      } else if (two_columns) {
        multiply_some_tiles<1, 2>(a, b, depth, to);
      } else {
        multiply_some_tiles<1, 1>(a, b, depth, to);
      }
    }
  }
}

TOKENDETR_INLINE int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

struct TileScratch {
  Carver carver;
  Keys<float> keys;
  BFloat16* query;    // a block's rows
  uint32_t* columns;  // keys: pairs of channels by keys
  uint32_t* value;    // pairs of keys by channels
  float *scores, *sums;
  BFloat16* shares;

  TileScratch(const Problem& problem, int64_t longest, bool has_table, void* base)
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
inline void gather_tile_rows(const Rows<const BFloat16>& from, BFloat16* to) {
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
inline void gather_tile_columns(const Rows<const BFloat16>& from, uint32_t* to, int64_t to_row) {
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
inline void gather_tile_pairs(const Rows<const BFloat16>& from, int64_t depth, uint32_t* to) {
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

inline void forward_tile_block(const Problem& problem, const Inputs& in, const Place& place, TileScratch& scratch,
                               const Write& output) {
  const Rows<const BFloat16> query(in.query, place), value(in.value, place);
  const Rows<BFloat16> to(output, place);
  const Keys<float>& keys = scratch.keys;
  const int64_t queries = place.count, width = problem.width, length = keys.length, depth = scratch.depth();
  const float scale = static_cast<float>(problem.scale);
  gather_tile_rows(query, scratch.query);
  multiply_tiles({scratch.query, width}, {scratch.columns, length}, queries, keys.count, width,
                 {scratch.scores, length});
  Tails<float> tails;
  for (int64_t t = 0; t < keys.tail; ++t) {
    for (int64_t i = 0; i < rounded_up(queries, kTile); ++i) {
      tails[t].number[i] = scratch.scores[i * length + keys.whole() + t] * scale;
    }
  }
  PerQuery<float> largest, inverse;
  make_logits<float>(keys, queries, Times<float>{broadcast<float>(scale)}, scratch.scores, tails, largest);
  exponentials<float>(keys, queries, largest, scratch.scores, BlockRows<BFloat16>{scratch.shares, depth}, tails,
                      inverse, value);
  multiply_tiles({scratch.shares, depth}, {scratch.value, width}, queries, width, depth, {scratch.sums, width});
  scatter_rows<float, BFloat16>(scratch.sums, [&](int64_t i) { return inverse.number[i]; }, to);
}

inline void forward_tile_segment(const Problem& problem, const Inputs& in, int64_t container, const Heads& heads,
                                 const int32_t* slots, int64_t count, TileScratch& scratch, const Write& output) {
  Keys<float>& keys = scratch.keys;
  keys.fill(problem, in, container, slots, count);
  keys.biased = 0;  // all logits are scaled where biases are added
  const int64_t depth = scratch.depth();
  std::memset(scratch.shares, 0, static_cast<size_t>(kBlock * depth) * sizeof(BFloat16));
  for (int64_t head = heads.first; head < heads.end; ++head) {
    const Place all{container, head, slots, count, problem.width};
    keys.choose_head(problem, in, head);
    gather_tile_columns({in.key, all}, scratch.columns, keys.length);
    gather_tile_pairs({in.value, all}, depth, scratch.value);
    for_each_block(all, [&](const Place& block) {
      keys.find_in_table(problem, in, block, head == heads.first);
      forward_tile_block(problem, in, block, scratch, output);
    });
  }
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
