// Padded values: head-major copies of levels with a border of zeros.
//
// A level of H x W pixels takes H + 3 rows of W + 1 tokens: a row of zeros above, the level, two rows of zeros below;
// the last token of a row is zero and serves as the left neighbor of the next row too. One more token leads each
// level. Channels are padded to whole vectors.
#pragma once

namespace tokendetr::TOKENDETR_ISA {

TOKENDETR_INLINE int64_t padded_row(const Level& level) { return level.width + 1; }

// Fills starts[level], the first token of each copied level in the copies, and returns the number of tokens.
TOKENDETR_INLINE int64_t padded_starts(const Problem& problem, LevelSet copied, int64_t* starts) {
  int64_t tokens = 0;
  for (int l = 0; l < problem.levels; ++l) {
    starts[l] = tokens;
    if (has_level(copied, l)) tokens += (problem.level[l].height + 3) * padded_row(problem.level[l]) + 1;
  }
  return tokens;
}

constexpr int kWidestChunk = 4;  // vectors of channels handled at once

template <class T>
TOKENDETR_INLINE int64_t padded_width(const Problem& problem) {
  return (problem.width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// True if kernels are compiled for exactly this many vectors per head (0: any number), and true if those have channels
// by twos: even ones in one vector, odd ones in the next, as bfloat16 is fastest to load (simd.h).
template <class T>
constexpr bool has_own_kernel(int64_t vectors) {
  return sizeof(T) == sizeof(float) && kVectorBytes > 16 && (vectors == 1 || vectors == 2 || vectors == 4);
}
template <class T, class S>
constexpr bool goes_by_twos(int64_t vectors) {
  return std::is_same_v<S, BFloat16> && has_own_kernel<T>(vectors) && vectors % 2 == 0;
}

// Loads kVectors vectors of channels, by twos or in order.
template <class T, bool kByTwos, int kVectors, class S>
TOKENDETR_INLINE void load_channels(const S* from, Vec<T>* channels) {
  if constexpr (kByTwos) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v += 2) load_by_twos<T>(from + v * kLanes<T>, channels + v);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) channels[v] = load<T>(from + v * kLanes<T>);
  }
}

// Brings vectors of channels from order to twos, and back.
template <class T, int kVectors>
TOKENDETR_INLINE void to_twos(Vec<T>* channels) {
  for (int v = 0; v < kVectors; v += 2) {
    const Vec<T> first = channels[v], second = channels[v + 1];
    channels[v] = shuffle<T>(first, second, PickEverySecond<0>{});
    channels[v + 1] = shuffle<T>(first, second, PickEverySecond<1>{});
  }
}
template <class T, int kVectors>
TOKENDETR_INLINE void from_twos(Vec<T>* channels) {
  for (int v = 0; v < kVectors; v += 2) {
    const Pairs<T> two{channels[v], channels[v + 1]};
    channels[v] = first_half<T>(two);
    channels[v + 1] = second_half<T>(two);
  }
}

// Stores vectors of channels from `channel` on as far as there are channels.
template <class T, int kVectors, class S>
TOKENDETR_INLINE void store_channels(const Vec<T>* channels, int64_t channel, int64_t width, S* to) {
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = channel + v * kLanes<T>;
    if (at < width) store_some<T>(to + at, channels[v], width - at);
  }
}

// Copies the channels of a token and pads them with zeros.
template <class S>
TOKENDETR_INLINE void copy_token(S* to, const S* from, int64_t width, int64_t padded) {
  const size_t used = static_cast<size_t>(width) * sizeof(S), whole = static_cast<size_t>(padded) * sizeof(S);
  if (used == whole && used == 128) {
    std::memcpy(to, from, 128);
  } else if (used == whole && used == 64) {
    std::memcpy(to, from, 64);
  } else {
    std::memcpy(to, from, used);
    std::memset(reinterpret_cast<char*>(to) + used, 0, whole - used);
  }
}

template <class T, class S>
void copy_padded_rows(const Problem& problem, const S* value, int64_t image, int64_t head, LevelSet copied,
                      S* padded_values) {
  const int64_t step = problem.heads * problem.width, padded = padded_width<T>(problem);
  const size_t used = static_cast<size_t>(problem.width) * sizeof(S);
  const S* first = value + (image * problem.tokens * problem.heads + head) * problem.width;
  S* to = padded_values;
  const auto zeros = [&to, padded](int64_t tokens) {
    std::memset(static_cast<void*>(to), 0, static_cast<size_t>(tokens * padded) * sizeof(S));
    to += tokens * padded;
  };
  constexpr int64_t kAhead = 24;  // tokens
  for (int l = 0; l < problem.levels; ++l) {
    if (!has_level(copied, l)) continue;
    const Level& level = problem.level[l];
    const S* from = first + level.start * step;
    zeros(padded_row(level) + 1);
    for (int64_t y = 0; y < level.height; ++y) {
      for (int64_t x = 0; x < level.width; ++x, from += step, to += padded) {
        for (size_t line = 0; line < used; line += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(from + kAhead * step) + line);
        }
        copy_token(to, from, problem.width, padded);
      }
      zeros(1);
    }
    zeros(2 * padded_row(level));
  }
}

// Writes a padded float (or double) gradient, by twos or in order, back as the gradient of the copied levels, past the
// caches if `streams`.
template <class T, bool kByTwos, class S>
void write_gradient(const Problem& problem, const T* padded_gradient, int64_t image, int64_t head, LevelSet copied,
                    bool streams, S* gradient) {
  constexpr int kStep = kByTwos ? 2 : 1;
  const int64_t step = problem.heads * problem.width, padded = padded_width<T>(problem);
  S* first = gradient + (image * problem.tokens * problem.heads + head) * problem.width;
  streams = streams && can_stream<T>(gradient, problem.width);
  int64_t starts[kMaxLevels];
  padded_starts(problem, copied, starts);
  for (int l = 0; l < problem.levels; ++l) {
    if (!has_level(copied, l)) continue;
    const Level& level = problem.level[l];
    S* to = first + level.start * step;
    for (int64_t y = 0; y < level.height; ++y) {
      const T* from = padded_gradient + (starts[l] + (y + 1) * padded_row(level) + 1) * padded;
      for (int64_t x = 0; x < level.width; ++x, from += padded, to += step) {
        for (int64_t c = 0; c < problem.width; c += kStep * kLanes<T>) {
          if constexpr (std::is_same_v<S, T>) {
            if (streams) {
              stream<T>(to + c, load<T>(from + c));
              continue;
            }
          }
          Vec<T> channels[kStep];
          for (int v = 0; v < kStep; ++v) channels[v] = load<T>(from + c + v * kLanes<T>);
          if constexpr (kByTwos) from_twos<T, kStep>(channels);
          store_channels<T, kStep>(channels, c, problem.width, to);
        }
      }
    }
  }
}

}  // namespace tokendetr::TOKENDETR_ISA
