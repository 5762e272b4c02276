// Padded values: head-major copies of levels with a border of zeros.
//
// A level of H x W pixels takes H + 3 rows of W + 1 tokens: a row of zeros above, the level, two rows of zeros below;
// the last token of a row is zero and serves as the left neighbor of the next row too. One more token leads each
// level. Channels are padded to whole vectors; bfloat16 is packed (see simd.h) if the number of vectors is a
// constant and even.
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

// True if kernels are compiled for exactly this many vectors per head (0: any number), and true if those read packed
// bfloat16 copies.
template <class T>
constexpr bool has_own_kernel(int64_t vectors) {
  return sizeof(T) == sizeof(float) && kVectorBytes > 16 && (vectors == 1 || vectors == 2 || vectors == 4);
}
template <class T, class S>
constexpr bool is_packed(int64_t vectors) {
  return std::is_same_v<S, BFloat16> && has_own_kernel<T>(vectors) && vectors % 2 == 0;
}

// Loads kVectors vectors of channels, from a packed row or in order.
template <class T, bool kPacked, int kVectors, class S>
TOKENDETR_INLINE void load_channels(const S* from, Vec<T>* channels) {
  if constexpr (kPacked) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v += 2) load_packed<T>(from + v * kLanes<T>, channels + v);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) channels[v] = load<T>(from + v * kLanes<T>);
  }
}

// Copies the channels of a token and pads them with zeros.
template <class T, bool kPacked, class S>
TOKENDETR_INLINE void copy_token(S* to, const S* from, int64_t width, int64_t padded) {
  const size_t used = static_cast<size_t>(width) * sizeof(S), whole = static_cast<size_t>(padded) * sizeof(S);
  if constexpr (kPacked) {
    S filled[kWidestChunk * kLanes<T>];
    if (used < whole) {
      std::memcpy(filled, from, used);
      std::memset(reinterpret_cast<char*>(filled) + used, 0, whole - used);
      from = filled;
    }
    for (int64_t c = 0; c < padded; c += 2 * kLanes<T>) pack<T>(to + c, from + c);
  } else if (used == whole && used == 128) {
    std::memcpy(to, from, 128);
  } else if (used == whole && used == 64) {
    std::memcpy(to, from, 64);
  } else {
    std::memcpy(to, from, used);
    std::memset(reinterpret_cast<char*>(to) + used, 0, whole - used);
  }
}

template <class T, bool kPacked, class S>
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
        copy_token<T, kPacked>(to, from, problem.width, padded);
      }
      zeros(1);
    }
    zeros(2 * padded_row(level));
  }
}

// Writes a padded float (or double) gradient back as the gradient of the copied levels, past the caches if `streams`.
template <class T, class S>
void write_gradient(const Problem& problem, const T* padded_gradient, int64_t image, int64_t head, LevelSet copied,
                    bool streams, S* gradient) {
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
        for (int64_t c = 0; c < problem.width; c += kLanes<T>) {
          if constexpr (std::is_same_v<S, T>) {
            if (streams) {
              stream<T>(to + c, load<T>(from + c));
              continue;
            }
          }
          store_some<T>(to + c, load<T>(from + c), problem.width - c);
        }
      }
    }
  }
}

}  // namespace tokendetr::TOKENDETR_ISA
