// The forward of a warp by tensor cores: half precision, heads of 32 channels, sums in float.
//
// A warp owns 16 queries. Lane 4 * g + p holds of each product's tile rows g and g + 8, columns 2 * p and 2 * p + 1.
// The order in which channels are summed is free, and so is which channel is which column of the output: both are
// chosen so that a lane reads and writes neighboring channels. Unlike in the plain kernels a value that is not finite
// reaches all queries of its container: 0 * nan is nan.
#pragma once

#include "rows.h"

namespace tokendetr::packed::cuda {

constexpr int kTensorWidth = 32;
constexpr int kTensorRows = 16;
constexpr int kTensorKeys = 64;  // whose logits are in registers

// A lane's part of a 16 x 16 factor, or two words of a 16 x 8 factor.
struct Fragment {
  uint32_t word[4];
};

TOKENDETR_DEVICE uint32_t low_halves(uint32_t first, uint32_t second) { return (first & 0xffffu) | (second << 16); }
TOKENDETR_DEVICE uint32_t high_halves(uint32_t first, uint32_t second) {
  return (first >> 16) | (second & 0xffff0000u);
}

// sum += left * right for a 16 x 16 and a 16 x 8 factor.
#ifdef TOKENDETR_EMULATED_DEVICE
template <class S>
void multiply_add(float (&sum)[4], const Fragment& left, uint32_t right0, uint32_t right1, int lane) {
  Fragment all[kWarp];
  const Fragment own_right{{right0, right1, 0, 0}};
  Fragment rights[kWarp];
  for (int distance = 0; distance < kWarp; ++distance) {
    all[lane ^ distance] = distance == 0 ? left : shuffle_xor(left, distance);
    rights[lane ^ distance] = distance == 0 ? own_right : shuffle_xor(own_right, distance);
  }
  const auto number = [](uint32_t word, int half) {
    S stored;
    stored.bits = static_cast<uint16_t>(half == 0 ? word : word >> 16);
    return tokendetr::cuda::widen(stored);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, upper = i / 2, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int part = k % 8 / 2, half = k % 2, later = k / 8;
      sum[i] += number(all[row * 4 + part].word[upper + 2 * later], half) *
                number(rights[column * 4 + part].word[later], half);
    }
  }
}
#else
template <class S>
TOKENDETR_DEVICE void multiply_add(float (&sum)[4], const Fragment& left, uint32_t right0, uint32_t right1, int) {
  const uint32_t (&a)[4] = left.word;
  if constexpr (std::is_same_v<S, Half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(right0), "r"(right1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(right0), "r"(right1));
  }
}
#endif

// The words of kCount channels of a slot's row from `channel` on, zeros if there is nothing to read.
template <class S, int kCount>
TOKENDETR_DEVICE void load_words(const Read& tensor, int64_t container, int64_t head, int64_t slot, int channel,
                                 bool real, uint32_t (&words)[kCount / 2]) {
  Packed<S, kCount> packed = {};
  if (real) {
    packed = tokendetr::cuda::load<kCount>(static_cast<const S*>(tensor.data) + container * tensor.container +
                                           slot * tensor.slot + head * tensor.head + channel);
  }
  memcpy(words, &packed, sizeof(packed));
}

// Two numbers in storage type, and what rounding took from them: the sum of both has twice the digits.
template <class S>
struct Split {
  uint32_t rounded, rest;

  TOKENDETR_DEVICE Split(float first, float second) {
    S kept[2], left[2];
    tokendetr::cuda::narrow(first, kept[0]);
    tokendetr::cuda::narrow(second, kept[1]);
    tokendetr::cuda::narrow(first - tokendetr::cuda::widen(kept[0]), left[0]);
    tokendetr::cuda::narrow(second - tokendetr::cuda::widen(kept[1]), left[1]);
    memcpy(&rounded, kept, sizeof(rounded));
    memcpy(&rest, left, sizeof(rest));
  }
};

// A warp's place and a lane's two rows.
struct TensorTile {
  int64_t container, head, slot[2];
  int32_t segment[2];
  int group, part;

  TOKENDETR_DEVICE TensorTile(const Problem& problem, const int32_t* segments, int64_t item, int lane)
      : group(lane / 4), part(lane % 4) {
    const int64_t tiles = (problem.slots + kTensorRows - 1) / kTensorRows, container_head = item / tiles;
    container = container_head / problem.heads;
    head = container_head % problem.heads;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      slot[h] = item % tiles * kTensorRows + group + 8 * h;
      segment[h] = slot[h] < problem.slots ? segments[container * problem.slots + slot[h]] : -1;
    }
  }
};

// The logits of kTensorKeys keys from `first` on, -inf for keys of other segments.
template <class S>
TOKENDETR_DEVICE void tensor_logits(const Problem& problem, const Inputs& in, const int32_t* segments,
                                    const TensorTile& tile, const Biases<float>& biases, const Fragment (&query)[2],
                                    int64_t first, int lane, float (&logit)[kTensorKeys / 8][4]) {
#pragma unroll
  for (int n = 0; n < kTensorKeys / 8; ++n) {
    const int64_t from = first + n * 8, own = from + 2 * tile.part;
    bool together[4], any = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t key = own + i % 2;
      together[i] = tile.segment[i / 2] >= 0 && key < problem.slots && segments[key] == tile.segment[i / 2];
      any = any || together[i];
      logit[n][i] = 0;
    }
    if (any_lane(any)) {
      uint32_t key[4];
      const int64_t slot = from + tile.group;
      load_words<S, 8>(in.key, tile.container, tile.head, slot, 8 * tile.part, slot < problem.slots, key);
      multiply_add<S>(logit[n], query[0], key[0], key[1], lane);
      multiply_add<S>(logit[n], query[1], key[2], key[3], lane);
    }
    const float scale = static_cast<float>(problem.scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      logit[n][i] =
          together[i] ? logit[n][i] * scale + biases.of(tile.slot[i / 2], own + i % 2) : minus_infinity<float>();
    }
  }
}

// Shares of the softmax in place of the logits; sums are of the lane's keys alone. Earlier outputs shrink.
TOKENDETR_DEVICE void tensor_shares(Softmax<float> (&softmax)[2], float (&logit)[kTensorKeys / 8][4],
                                    float (&output)[4][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float most = softmax[h].largest;
#pragma unroll
    for (int n = 0; n < kTensorKeys / 8; ++n) {
      most = logit[n][2 * h] > most ? logit[n][2 * h] : most;
      most = logit[n][2 * h + 1] > most ? logit[n][2 * h + 1] : most;
    }
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      const float other = shuffle_xor(most, distance);
      most = other > most ? other : most;
    }
    const float factor = softmax[h].raise(most);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      output[j][2 * h] *= factor;
      output[j][2 * h + 1] *= factor;
    }
#pragma unroll
    for (int n = 0; n < kTensorKeys / 8; ++n) {
#pragma unroll
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        logit[n][i] = softmax[h].share(logit[n][i]);
        softmax[h].sum += logit[n][i];
      }
    }
  }
}

// output += shares * values; column c of tile j is channel 4 * c + j.
template <class S>
TOKENDETR_DEVICE void add_tensor_values(const Problem& problem, const Inputs& in, const int32_t* segments,
                                        const TensorTile& tile, const float (&share)[kTensorKeys / 8][4], int64_t first,
                                        int lane, float (&output)[4][4]) {
#pragma unroll
  for (int t = 0; t < kTensorKeys / 16; ++t) {
    const int64_t from = first + 16 * t;
    if (from >= problem.slots) continue;
    uint32_t value[4][2];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t key = from + 2 * tile.part + k % 2 + 8 * (k / 2);
      const bool real = key < problem.slots && segments[key] >= 0;
      load_words<S, 4>(in.value, tile.container, tile.head, key, 4 * tile.group, real, value[k]);
    }
    const float (&a)[4] = share[2 * t];
    const float (&b)[4] = share[2 * t + 1];
    const Split<S> parts[4] = {{a[0], a[1]}, {a[2], a[3]}, {b[0], b[1]}, {b[2], b[3]}};
    const Fragment rounded{{parts[0].rounded, parts[1].rounded, parts[2].rounded, parts[3].rounded}};
    const Fragment rest{{parts[0].rest, parts[1].rest, parts[2].rest, parts[3].rest}};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int word = j / 2;
      const uint32_t right0 =
          j % 2 == 0 ? low_halves(value[0][word], value[1][word]) : high_halves(value[0][word], value[1][word]);
      const uint32_t right1 =
          j % 2 == 0 ? low_halves(value[2][word], value[3][word]) : high_halves(value[2][word], value[3][word]);
      multiply_add<S>(output[j], rounded, right0, right1, lane);
      multiply_add<S>(output[j], rest, right0, right1, lane);
    }
  }
}

template <class S>
TOKENDETR_DEVICE void tensor_forward_of_warp(const Problem& problem, const Inputs& in, const int32_t* all_segments,
                                             const Write& output, int64_t item, int lane) {
  const TensorTile tile(problem, all_segments, item, lane);
  const int32_t* segments = all_segments + tile.container * problem.slots;
  const Biases<float> biases(problem, in, tile.container, tile.head);
  uint32_t row[2][4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    load_words<S, 8>(in.query, tile.container, tile.head, tile.slot[h], 8 * tile.part, tile.segment[h] >= 0, row[h]);
  }
  const Fragment query[2] = {{{row[0][0], row[1][0], row[0][1], row[1][1]}},
                             {{row[0][2], row[1][2], row[0][3], row[1][3]}}};
  Softmax<float> softmax[2];
  float sum[4][4] = {};
  for (int64_t first = 0; first < problem.slots; first += kTensorKeys) {
    float share[kTensorKeys / 8][4];
    tensor_logits<S>(problem, in, segments, tile, biases, query, first, lane, share);
    tensor_shares(softmax, share, sum);
    add_tensor_values<S>(problem, in, segments, tile, share, first, lane, sum);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    softmax[h].sum = sum_over_row(softmax[h].sum, 4);
    const float inverse = softmax[h].inverse();
    float channels[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) channels[c] = tile.segment[h] < 0 ? 0.0f : sum[c % 4][2 * h + c / 4] * inverse;
    if (tile.slot[h] >= problem.slots) continue;
    S* to = static_cast<S*>(output.data) + tile.container * output.container + tile.slot[h] * output.slot +
            tile.head * output.head + 8 * tile.part;
    tokendetr::cuda::store<float>(to, channels);
  }
}

// Calls function with a number of the storage type if the kernel fits the problem; returns true if it does.
template <class Function>
bool with_tensor_cores(const Problem& problem, Storage storage, Function function) {
  if (problem.width != kTensorWidth) return false;
  if (storage == Storage::kBFloat16) {
    function(BFloat{});
  } else if (storage == Storage::kFloat16) {
    function(Half{});
  } else {
    return false;
  }
  return true;
}

inline int64_t tensor_items(const Problem& problem) {
  return problem.containers * problem.heads * ((problem.slots + kTensorRows - 1) / kTensorRows);
}

}  // namespace tokendetr::packed::cuda
