// Permutations of the lanes of vectors, and sums over lanes. Included after simd.h.
#pragma once

namespace tokendetr::TOKENDETR_ISA {

// shuffle<T>(a, b, {index...}): lane i of the result is lane index[i] of a followed by b; indices are constants.
template <class T>
using Places = Beside<T, std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>;

template <class T, class Pick, int... kLane>
TOKENDETR_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Pick, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Pick::at(kLane)...);
#else
  return __builtin_shuffle(a, b, Places<T>{Pick::at(kLane)...});
#endif
}
template <class T, class Pick>
TOKENDETR_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Pick pick) {
  return shuffle<T>(a, b, pick, std::make_integer_sequence<int, kLanes<T>>{});
}

template <int kFirst>
struct PickEverySecond {
  static constexpr int at(int lane) { return 2 * lane + kFirst; }
};
template <int kCount, int kHalf>
struct PickInterleaved {
  static constexpr int at(int lane) { return (lane & 1) * kCount + lane / 2 + kHalf * (kCount / 2); }
};
template <int kDistance>
struct PickPartner {
  static constexpr int at(int lane) { return lane ^ kDistance; }
};
template <int kCount, int kDistance>
struct PickOwn {  // lanes whose bit is clear from a, the others from b
  static constexpr int at(int lane) { return (lane & kDistance) ? kCount + lane : lane; }
};
template <int kCount, int kDistance>
struct PickOther {  // the partner lane, from a where the bit is clear, else from b
  static constexpr int at(int lane) { return (lane ^ kDistance) + ((lane & kDistance) ? kCount : 0); }
};

template <int kCount, int kDistance>
struct PickLower {  // a where the bit is clear, else b's partner lane
  static constexpr int at(int lane) { return (lane & kDistance) ? kCount + (lane ^ kDistance) : lane; }
};
template <int kCount, int kDistance>
struct PickUpper {  // a's partner lane where the bit is clear, else b
  static constexpr int at(int lane) { return (lane & kDistance) ? kCount + lane : lane ^ kDistance; }
};

template <class T>
struct Pairs {
  Vec<T> x;
  Vec<T> y;
};
template <class T>
TOKENDETR_INLINE Pairs<T> load_pairs(const T* from) {
  const Vec<T> first = load<T>(from), second = load<T>(from + kLanes<T>);
  return {shuffle<T>(first, second, PickEverySecond<0>{}), shuffle<T>(first, second, PickEverySecond<1>{})};
}
template <class T>
TOKENDETR_INLINE Vec<T> first_half(Pairs<T> pairs) {
  return shuffle<T>(pairs.x, pairs.y, PickInterleaved<kLanes<T>, 0>{});
}
template <class T>
TOKENDETR_INLINE Vec<T> second_half(Pairs<T> pairs) {
  return shuffle<T>(pairs.x, pairs.y, PickInterleaved<kLanes<T>, 1>{});
}
template <class T>
TOKENDETR_INLINE void store_pairs(T* to, Pairs<T> pairs) {
  store<T>(to, first_half<T>(pairs));
  store<T>(to + kLanes<T>, second_half<T>(pairs));
}

template <class T, int kDistance = kLanes<T> / 2>
TOKENDETR_INLINE Vec<T> sum_everywhere(Vec<T> vector) {
  if constexpr (kDistance == 0) {
    return vector;
  } else {
    return sum_everywhere<T, kDistance / 2>(vector + shuffle<T>(vector, vector, PickPartner<kDistance>{}));
  }
}
template <class T>
TOKENDETR_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {  // keeps a NaN of either
  return a < b ? b : (b == b ? a : b);
}
template <class T, int kDistance = kLanes<T> / 2>
TOKENDETR_INLINE Vec<T> largest_everywhere(Vec<T> vector) {
  if constexpr (kDistance == 0) {
    return vector;
  } else {
    return largest_everywhere<T, kDistance / 2>(
        larger<T>(vector, shuffle<T>(vector, vector, PickPartner<kDistance>{})));
  }
}

// Lanes whose bit kDistance is clear hold sums of a's lanes in pairs, the others of b's.
template <class T, int kDistance>
TOKENDETR_INLINE Vec<T> sum_pairs(Vec<T> a, Vec<T> b) {
  constexpr int kCount = kLanes<T>;
  return shuffle<T>(a, b, PickOwn<kCount, kDistance>{}) + shuffle<T>(a, b, PickOther<kCount, kDistance>{});
}

// Quarter c of the result holds partial sums of vectors[c].
template <class T>
TOKENDETR_INLINE Vec<T> sums_in_quarters(const Vec<T> vectors[4]) {
  constexpr int kHalf = kLanes<T> / 2;
  return sum_pairs<T, kHalf / 2>(sum_pairs<T, kHalf>(vectors[0], vectors[2]),
                                 sum_pairs<T, kHalf>(vectors[1], vectors[3]));
}

// Lane j of a quarter of the result is the sum of that quarter of vectors[j], for as many vectors as a quarter has
// lanes, which are used up.
template <class T, int kDistance = kLanes<T> / 8>
TOKENDETR_INLINE Vec<T> sum_quarters(Vec<T>* vectors) {
  if constexpr (kDistance == 0) {
    return vectors[0];
  } else {
    for (int i = 0; i < kDistance; ++i) vectors[i] = sum_pairs<T, kDistance>(vectors[i], vectors[i + kDistance]);
    return sum_quarters<T, kDistance / 2>(vectors);
  }
}

// Exchanges the lanes of a whose bit kDistance is set with those of b whose bit is clear.
template <class T, int kDistance>
TOKENDETR_INLINE void exchange(Vec<T>& a, Vec<T>& b) {
  constexpr int kCount = kLanes<T>;
  const Vec<T> first = shuffle<T>(a, b, PickLower<kCount, kDistance>{});
  b = shuffle<T>(a, b, PickUpper<kCount, kDistance>{});
  a = first;
}

// sums[c], lane i: the sum of quarter c of vectors[i]; `vectors` (as many as lanes) are used up.
template <class T>
TOKENDETR_INLINE void sum_all_quarters(Vec<T>* vectors, Vec<T> sums[4]) {
  constexpr int kQuarter = kLanes<T> / 4;
  for (int k = 0; k < 4; ++k) sums[k] = sum_quarters<T>(vectors + k * kQuarter);
  exchange<T, 2 * kQuarter>(sums[0], sums[2]);
  exchange<T, 2 * kQuarter>(sums[1], sums[3]);
  exchange<T, kQuarter>(sums[0], sums[1]);
  exchange<T, kQuarter>(sums[2], sums[3]);
}

}  // namespace tokendetr::TOKENDETR_ISA
