// Softmax of the products of a block of queries with the keys of their segment.
#pragma once

namespace tokendetr::TOKENDETR_ISA::packed {

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

struct Sum {
  template <class V>
  TOKENDETR_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};
// Not std::max: this compiles to one max instruction, which returns b if a is NaN.
struct Larger {
  template <class V>
  TOKENDETR_INLINE V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

// Reduces as many vectors as there are lanes: lane i of the result is vectors[i] reduced to one number. Transposing
// while reducing takes about two shuffles per vector; reducing each vector alone would take log2(lanes). Overwrites the
// vectors.
template <class T, class Fold, int kDistance = kLanes<T> / 2>
TOKENDETR_INLINE Vec<T> fold(Vec<T>* vectors, const Fold& both) {
  if constexpr (kDistance == 0) {
    return vectors[0];
  } else {
    constexpr int kCount = kLanes<T>;
#pragma GCC unroll 8
    for (int i = 0; i < kDistance; ++i) {
      const Vec<T> a = vectors[i], b = vectors[i + kDistance];
      vectors[i] =
          both(shuffle<T>(a, b, PickOwn<kCount, kDistance>{}), shuffle<T>(a, b, PickOther<kCount, kDistance>{}));
    }
    return fold<T, Fold, kDistance / 2>(vectors, both);
  }
}

// One number for each query of a block; Partial holds one vector for each, still to be reduced by `fold`.
template <class T>
struct alignas(64) PerQuery {
  T number[kBlock];
};
template <class T>
struct Partial {
  Vec<T> vector[kBlock];

  // Zeroes the rows behind the last query up to a whole vector of queries, which `fold` reads.
  TOKENDETR_INLINE void finish(int64_t queries) {
    for (int64_t i = queries; i < whole_vectors<T>(queries) * kLanes<T>; ++i) vector[i] = Vec<T>{};
  }
};
// For each key of the tail (those behind the last whole vector of keys) one number per query.
template <class T>
using Tails = PerQuery<T>[kMostTail<T>];

// Products of a block's queries with the keys of the tail, one key at a time.
template <class T>
void multiply_tails(const T* block, int64_t queries, const T* rows, int64_t width, int64_t tail, Tails<T>& products) {
  for (int64_t t = 0; t < tail; ++t) {
    for (int64_t first = 0; first < queries; first += kLanes<T>) {
      Vec<T> sums[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) {
        const T* row = block + (first + i) * width;
        sums[i] = load<T>(row) * load<T>(rows + t * width);
        for (int64_t c = kLanes<T>; c < width; c += kLanes<T>) {
          sums[i] += load<T>(row + c) * load<T>(rows + t * width + c);
        }
      }
      store<T>(products[t].number + first, fold<T>(sums, Sum{}));
    }
  }
}

// Writes the tails' numbers behind the whole vectors of rows of E.
template <class T, class E>
TOKENDETR_INLINE void put_tails(const Keys<T>& keys, int64_t queries, const Tails<T>& tails, E* rows, int64_t length) {
  for (int64_t t = 0; t < keys.tail; ++t) {
    E* to = rows + keys.whole() + t;
    for (int64_t first = 0; first < queries; first += kLanes<T>) {
      E few[kLanes<T>];
      store<T>(few, load<T>(tails[t].number + first));
      const int64_t rest = queries - first, count = rest < kLanes<T> ? rest : kLanes<T>;
      for (int64_t i = 0; i < count; ++i) to[(first + i) * length] = few[i];
    }
  }
}

template <class T>
TOKENDETR_INLINE void add_biases_of_tails(const Keys<T>& keys, int64_t queries, Tails<T>& tails) {
  if (keys.biased > 0) return;
  for (int64_t t = 0; t < keys.tail; ++t) {
    const int64_t key = keys.whole() + t;
    for (int64_t i = 0; i < queries; ++i) {
      tails[t].number[i] += keys.bias[key];
      if (keys.table != nullptr) tails[t].number[i] += keys.table[keys.index[i * keys.length + key]];
    }
  }
}

// Products that are logits but for their biases, and those that are still to be multiplied by a scale.
template <class T>
struct AsTheyAre {
  TOKENDETR_INLINE Vec<T> operator()(Vec<T> products) const { return products; }
};
template <class T>
struct Times {
  Vec<T> scale;
  TOKENDETR_INLINE Vec<T> operator()(Vec<T> products) const { return products * scale; }
};

// Scales products where there are biases, adds these and finds each query's largest logit. A NaN among the logits need
// not reach the largest: it reaches the sum of exponentials. Where all logits are -inf, `largest` is 0, because -inf -
// -inf would be NaN.
template <class T, class Scaled>
TOKENDETR_INLINE void make_logits(const Keys<T>& keys, int64_t queries, const Scaled& scaled, T* rows, Tails<T>& tails,
                                  PerQuery<T>& largest) {
  const Vec<T> least = broadcast<T>(-static_cast<T>(__builtin_inf()));
  const Larger larger;
  Partial<T> most;
  for (int64_t i = 0; i < queries; ++i) {
    T* row = rows + i * keys.length;
    Vec<T> own = least;
    for (int64_t v = 0; v < keys.biased; ++v) own = larger(load<T>(row + v * kLanes<T>), own);
    for (int64_t v = keys.biased; v < keys.vectors; ++v) {
      const int64_t j = v * kLanes<T>;
      Vec<T> logit = scaled(load<T>(row + j)) + load<T>(keys.bias + j);
      if (keys.table != nullptr) logit += gather<T>(keys.table, keys.index + i * keys.length + j);
      store<T>(row + j, logit);
      own = larger(logit, own);
    }
    most.vector[i] = own;
  }
  most.finish(queries);
  add_biases_of_tails<T>(keys, queries, tails);
  for (int64_t first = 0; first < queries; first += kLanes<T>) {
    Vec<T> own = fold<T>(most.vector + first, larger);
    for (int64_t t = 0; t < keys.tail; ++t) own = larger(load<T>(tails[t].number + first), own);
    store<T>(largest.number + first, own == least ? Vec<T>{} : own);
  }
}

// Rows of numbers or of bfloat16, a row for each query of a block.
template <class E>
struct BlockRows {
  E* data;
  int64_t length;
};

// Sets `shares`, which may be the logits' memory, to e^(logit - largest), 0 behind the last key, and `inverse` to one
// by their sums. Rows are not divided by their sums here: the products with the values are fewer numbers to scale.
template <class T, class E, class Ahead>
TOKENDETR_INLINE void exponentials(const Keys<T>& keys, int64_t queries, const PerQuery<T>& largest, const T* rows,
                                   const BlockRows<E>& shares, Tails<T>& tails, PerQuery<T>& inverse,
                                   const Ahead& ahead) {
  Partial<T> sums;
  for (int64_t i = 0; i < queries; ++i) {
    ahead.fetch_next(i);
    const Vec<T> zero = broadcast<T>(largest.number[i]);
    const T* row = rows + i * keys.length;
    E* to = shares.data + i * shares.length;
    Vec<T> sum{};
    for (int64_t j = 0; j < keys.whole(); j += kLanes<T>) {
      const Vec<T> share = exp_nonpositive(load<T>(row + j) - zero);
      store<T>(to + j, share);
      sum += share;
    }
    sums.vector[i] = sum;
  }
  sums.finish(queries);
  for (int64_t first = 0; first < queries; first += kLanes<T>) {
    Vec<T> sum = fold<T>(sums.vector + first, Sum{});
    for (int64_t t = 0; t < keys.tail; ++t) {
      const Vec<T> share = exp_nonpositive(load<T>(tails[t].number + first) - load<T>(largest.number + first));
      store<T>(tails[t].number + first, share);
      sum += share;
    }
    store<T>(inverse.number + first, sum == Vec<T>{} ? Vec<T>{} : T(1) / sum);
  }
  put_tails<T, E>(keys, queries, tails, shares.data, shares.length);
}

// Replaces a block of products by unnormalized attention weights; `inverse` normalizes them.
template <class T, class S>
void softmax_rows(const Keys<T>& keys, int64_t queries, T* rows, Tails<T>& tails, PerQuery<T>& inverse,
                  const Rows<S>& ahead) {
  PerQuery<T> largest;
  make_logits<T>(keys, queries, AsTheyAre<T>{}, rows, tails, largest);
  exponentials<T>(keys, queries, largest, rows, BlockRows<T>{rows, keys.length}, tails, inverse, ahead);
}

}  // namespace tokendetr::TOKENDETR_ISA::packed
