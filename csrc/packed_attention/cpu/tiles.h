// Products of pairs of bfloat16 by tiles (AMX), the processor's matrix unit.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

// kRows times kColumns tiles of a product of numbers up to `depth` rounded up to kTileDepth.
template <int kRows, int kColumns>
TOKENDETR_INLINE void multiply_some_tiles(const PairsLeft& left, const PairsRight& right, int64_t depth,
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
TOKENDETR_INLINE void multiply_tiles(const PairsLeft& left, const PairsRight& right, int64_t rows, int64_t columns,
                                     int64_t depth, const BlockRows<float>& product) {
  for (int64_t i = 0; i < rows; i += 2 * kTile) {
    for (int64_t j = 0; j < columns; j += 2 * kTile) {
      const PairsLeft a{left.data + i * left.row, left.row};
      const PairsRight b{right.data + j, right.row};
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

  // Computes whole tiles.
  TOKENDETR_INLINE void multiply(const PairsLeft& left, const PairsRight& right, int64_t rows, int64_t columns,
                                 int64_t depth, const BlockRows<float>& product) const {
    multiply_tiles(left, right, rows, columns, depth, product);
  }

 private:
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  Config before_{};
};

}  // namespace tokendetr::TOKENDETR_ISA::packed
