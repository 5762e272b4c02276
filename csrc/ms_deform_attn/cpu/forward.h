// The forward of one head of one image.
#pragma once

namespace tokendetr::TOKENDETR_ISA {

template <class V, class T>
TOKENDETR_INLINE T lane_of(const V& vector, int lane, T) {
  return reinterpret_cast<const T*>(&vector)[lane];
}

template <class S>
struct ZeroRow {
  alignas(64) S channel[kVectorBytes / sizeof(uint16_t) * kWidestChunk];
};

// The rows of a head's values: padded values (stride = padded width) or in place (stride = heads * width).
template <class T, class S, bool kCopied>
struct Rows {
  S* base;
  int64_t stride;
  S* zero_row;  // in place: read for pixels outside a level

  // The four corners of a sample, from channel `channel` on.
  TOKENDETR_INLINE void corners(const Corners<T>& corners, int lane, int64_t row_step, int64_t channel,
                                S* corner[4]) const {
    if constexpr (kCopied) {
      corner[0] = base + lane_of(corners.token[0], lane, int32_t()) * stride + channel;
      corner[1] = corner[0] + stride;
      corner[2] = corner[0] + row_step * stride;
      corner[3] = corner[2] + stride;
    } else {
      for (int c = 0; c < 4; ++c) {
        const int64_t token = lane_of(corners.token[c], lane, int32_t());
        corner[c] = token < 0 ? zero_row : base + token * stride + channel;
      }
    }
  }
};

// Fetches a head's channels of the query that is kPrefetchedQueries further on. Those of neighboring queries lie far
// apart: without it, each row of the output that is not in the caches holds up all stores behind it.
template <class S>
TOKENDETR_INLINE void fetch_ahead(const S* channels, int64_t row, int64_t width) {
  const char* ahead = reinterpret_cast<const char*>(channels + kPrefetchedQueries * row);
  for (size_t byte = 0; byte < static_cast<size_t>(width) * sizeof(S); byte += 64) __builtin_prefetch(ahead + byte);
}

// Fetches the corners of a head's samples, up to kChannels channels of them.
template <class T, class S, int kChannels>
TOKENDETR_INLINE void fetch(int samples, const Corners<T>* corners, const Rows<T, const S, false>& rows) {
  for (int sample = 0; sample < samples; ++sample) {
    const S* corner[4];
    rows.corners(corners[sample / kLanes<T>], sample % kLanes<T>, 0, 0, corner);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
#pragma GCC unroll 4
      for (int byte = 0; byte < kChannels * static_cast<int>(sizeof(S)); byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(corner[c]) + byte);
      }
    }
  }
}

// Adds the weighted corners of a head's samples, kVectors vectors of channels at once.
template <class T, class S, bool kCopied, bool kPacked, int kVectors>
TOKENDETR_INLINE void gather(const LevelLanes<T>& lanes, int samples, const Corners<T>* corners,
                             const Rows<T, const S, kCopied>& rows, int64_t channel, Vec<T>* sum) {
  constexpr int kSums = (kVectors <= 2) ? 4 : 2;  // chains of additions in flight
  Vec<T> partial[kSums][kVectors] = {};
  for (int first = 0; first < samples; first += kLanes<T>, ++corners) {
    const int count = samples - first < kLanes<T> ? samples - first : kLanes<T>;
    for (int lane = 0; lane < count; ++lane) {
      const S* corner[4];
      rows.corners(*corners, lane, lanes.row_step[first + lane], channel, corner);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const Vec<T> weight = broadcast<T>(lane_of(corners->weight[c], lane, T()));
        Vec<T> channels[kVectors];
        load_channels<T, kPacked, kVectors>(corner[c], channels);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) partial[c % kSums][v] += weight * channels[v];
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    sum[v] = partial[0][v] + partial[1][v];
    if constexpr (kSums == 4) sum[v] += partial[2][v] + partial[3][v];
  }
}

template <class T, class S, bool kCopied, bool kPacked, int kVectors>
TOKENDETR_INLINE void gather_and_store(const LevelLanes<T>& lanes, int samples, const Corners<T>* corners,
                                       const Rows<T, const S, kCopied>& rows, int64_t channel, int64_t width, S* to) {
  Vec<T> sum[kVectors];
  gather<T, S, kCopied, kPacked, kVectors>(lanes, samples, corners, rows, channel, sum);
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = channel + v * kLanes<T>;
    if (at < width) store_some<T>(to + at, sum[v], width - at);
  }
}

// One query and head. kVectors: vectors per head where that is known at compile time, else 0.
template <class T, class S, bool kCopied, int kVectors>
TOKENDETR_INLINE void sum_samples(const Problem& problem, const LevelLanes<T>& lanes, const Corners<T>* corners,
                                  const Rows<T, const S, kCopied>& rows, int64_t padded, S* to) {
  const int samples = problem.samples();
  if constexpr (kVectors > 0) {
    constexpr bool kPacked = kCopied && is_packed<T, S>(kVectors);
    gather_and_store<T, S, kCopied, kPacked, kVectors>(lanes, samples, corners, rows, 0, problem.width, to);
  } else {
    int64_t channel = 0;
    for (; channel + 4 * kLanes<T> <= padded; channel += 4 * kLanes<T>) {
      gather_and_store<T, S, kCopied, false, 4>(lanes, samples, corners, rows, channel, problem.width, to);
    }
    for (; channel < padded; channel += kLanes<T>) {
      gather_and_store<T, S, kCopied, false, 1>(lanes, samples, corners, rows, channel, problem.width, to);
    }
  }
}

template <class T, class S, bool kCopied, class Samples, int kVectors>
void forward_queries(const Problem& problem, const Inputs& in, int64_t image, int64_t head, int64_t begin, int64_t end,
                     const S* padded_values, S* output) {
  static const ZeroRow<S> kZeros{};
  const LevelLanes<T> lanes = level_lanes<T>(problem, kCopied);
  Samples source(problem, lanes, in, image, head, nullptr);
  const int64_t padded = kVectors > 0 ? kVectors * kLanes<T> : padded_width<T>(problem);
  const int64_t row = problem.heads * problem.width;
  Rows<T, const S, kCopied> rows{padded_values, padded, kZeros.channel};
  if (!kCopied) {
    rows.base = static_cast<const S*>(in.value) + image * problem.tokens * row + head * problem.width;
    rows.stride = row;
  }
  S* first = output + image * problem.queries * row + head * problem.width;
  // In place samples lie anywhere in the values: the next query's are fetched while this one's are summed. Padded
  // copies fit in a cache, and asking for them early only costs time.
  constexpr int kAhead = kCopied ? 0 : 1;
  constexpr int kFetched = kLanes<T> * (kVectors > 0 ? kVectors : 1);
  Corners<T> located[kAhead + 1][LevelLanes<T>::kBlocks];
  for (int64_t next = begin; next < end + kAhead; ++next) {
    if (next < end) {
      Corners<T>* corners = located[next & kAhead];
      source.start(next);
      fetch_ahead(first + next * row, row, problem.width);
      for (int block = 0; block < lanes.blocks; ++block) {
        locate<T, kCopied>(lanes, block, source.points(block), corners[block]);
      }
      if constexpr (kAhead > 0) fetch<T, S, kFetched>(problem.samples(), corners, rows);
    }
    const int64_t query = next - kAhead;
    if (query < begin) continue;
    sum_samples<T, S, kCopied, kVectors>(problem, lanes, located[query & kAhead], rows, padded, first + query * row);
  }
}

}  // namespace tokendetr::TOKENDETR_ISA
