// Votes and sums over the lanes of a warp.
#pragma once

#include "../../common/cuda/device.h"

namespace tokendetr::packed::cuda {

using tokendetr::cuda::shuffle_xor;
using tokendetr::cuda::sync_warp;

// True if something holds in any lane of the warp; and the lanes (a bit each) that have the same number.
#ifdef TOKENDETR_EMULATED_DEVICE
inline bool any_lane(bool holds) {
  for (int distance = 16; distance > 0; distance /= 2) holds = shuffle_xor(holds, distance) || holds;
  return holds;
}
inline unsigned lanes_with(int32_t number, int lane) {
  unsigned lanes = 1u << lane;
  for (int distance = 1; distance < 32; ++distance) {
    if (shuffle_xor(number, distance) == number) lanes |= 1u << (lane ^ distance);
  }
  return lanes;
}
#else
TOKENDETR_DEVICE bool any_lane(bool holds) { return __any_sync(tokendetr::cuda::kWholeWarp, holds); }
TOKENDETR_DEVICE unsigned lanes_with(int32_t number, int) {
  return __match_any_sync(tokendetr::cuda::kWholeWarp, number);
}
#endif

TOKENDETR_DEVICE int count_bits(unsigned bits) {
  int count = 0;
  for (; bits != 0; bits &= bits - 1) ++count;
  return count;
}

// Sums over the lanes of a row, whose number is a power of two.
template <class T>
TOKENDETR_DEVICE T sum_over_row(T x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) x += shuffle_xor(x, distance);
  return x;
}

// numbers[cell] += amount for each lane's cell (negative: none), lanes of one cell one after the other: the same bits
// every time. No other warp may use the numbers.
template <class T>
TOKENDETR_DEVICE void add_in_order(T* numbers, int32_t cell, T amount, int lane) {
  const int turn = count_bits(lanes_with(cell, lane) & ((1u << lane) - 1));
  for (int now = 0; any_lane(cell >= 0 && turn >= now); ++now) {
    if (cell >= 0 && turn == now) numbers[cell] += amount;
    sync_warp();
  }
}

}  // namespace tokendetr::packed::cuda
