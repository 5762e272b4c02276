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

// Fetches the corners of samples that are read in place, which lie anywhere in the values, into the second cache: it
// waits for more lines at once than the first. Copies fit in a cache, and asking for them early only costs time.
// kVectors: as in sum_samples().
template <class T, class S, int kVectors>
TOKENDETR_INLINE void fetch_in_place(const Visits& visits, const Corners<T>& corners, const Rows<T, S, false>& rows) {
  constexpr int kSecondCache = 2;
  constexpr int kBytes = kLanes<T> * (kVectors > 0 ? kVectors : 1) * static_cast<int>(sizeof(S));
  for (int i = 0; i < visits.count; ++i) {
    S* corner[4];
    rows.corners(corners, visits.lane[i], 0, 0, corner);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
#pragma GCC unroll 4
      for (int byte = 0; byte < kBytes; byte += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(corner[c]) + byte, 0, kSecondCache);
      }
    }
  }
}

// Adds the weighted corners of a run of samples to `sum`, kVectors vectors of channels at once.
template <class T, class S, bool kCopied, bool kByTwos, int kVectors>
TOKENDETR_INLINE void gather(const LevelLanes<T>& lanes, const Run& run, const Corners<T>* corners,
                             const Rows<T, const S, kCopied>& rows, int64_t channel, Vec<T>* sum) {
  constexpr int kSums = (kVectors <= 2) ? 4 : 2;  // chains of additions in flight
  Vec<T> partial[kSums][kVectors] = {};
  for (int sample = run.first; sample < run.end;) {
    const Corners<T>& own = corners[sample / kLanes<T>];
    const int block_end = (sample / kLanes<T> + 1) * kLanes<T>, end = block_end < run.end ? block_end : run.end;
    for (; sample < end; ++sample) {
      const int lane = sample % kLanes<T>;
      const S* corner[4];
      rows.corners(own, lane, lanes.row_step[sample], channel, corner);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const Vec<T> weight = broadcast<T>(lane_of(own.weight[c], lane, T()));
        Vec<T> channels[kVectors];
        load_channels<T, kByTwos, kVectors>(corner[c], channels);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) partial[c % kSums][v] += weight * channels[v];
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    sum[v] += partial[0][v] + partial[1][v];
    if constexpr (kSums == 4) sum[v] += partial[2][v] + partial[3][v];
  }
}

// A head's values: its copies, and the tensor.
template <class T, class S>
struct Sources {
  Rows<T, const S, true> copied;
  Rows<T, const S, false> in_place;
};

template <class T, class S, bool kByTwos, int kVectors>
TOKENDETR_INLINE void gather_and_store(const LevelLanes<T>& lanes, const Corners<T>* corners,
                                       const Sources<T, S>& sources, int64_t channel, int64_t width, S* to) {
  Vec<T> sum[kVectors] = {};
  for (int i = 0; i < lanes.runs; ++i) {
    const Run& run = lanes.run[i];
    if (run.copied) {
      gather<T, S, true, kByTwos, kVectors>(lanes, run, corners, sources.copied, channel, sum);
    } else {
      gather<T, S, false, kByTwos, kVectors>(lanes, run, corners, sources.in_place, channel, sum);
    }
  }
  if constexpr (kByTwos) from_twos<T, kVectors>(sum);
  store_channels<T, kVectors>(sum, channel, width, to);
}

// One query and head. kVectors: vectors per head where that is known at compile time, else 0.
template <class T, class S, int kVectors>
TOKENDETR_INLINE void sum_samples(const Problem& problem, const LevelLanes<T>& lanes, const Corners<T>* corners,
                                  const Sources<T, S>& sources, S* to) {
  if constexpr (kVectors > 0) {
    gather_and_store<T, S, goes_by_twos<T, S>(kVectors), kVectors>(lanes, corners, sources, 0, problem.width, to);
  } else {
    const int64_t padded = padded_width<T>(problem);
    int64_t channel = 0;
    for (; channel + 4 * kLanes<T> <= padded; channel += 4 * kLanes<T>) {
      gather_and_store<T, S, false, 4>(lanes, corners, sources, channel, problem.width, to);
    }
    for (; channel < padded; channel += kLanes<T>) {
      gather_and_store<T, S, false, 1>(lanes, corners, sources, channel, problem.width, to);
    }
  }
}

template <class T, class S, class Samples, int kVectors>
void forward_queries(const Problem& problem, const Inputs& in, int64_t image, int64_t head, int64_t begin, int64_t end,
                     const Copies& copies, S* output) {
  static const ZeroRow<S> kZeros{};
  const LevelLanes<T> lanes = level_lanes<T>(problem, copies.levels);
  Samples source(problem, lanes, in, image, head, nullptr);
  const int64_t padded = kVectors > 0 ? kVectors * kLanes<T> : padded_width<T>(problem);
  const int64_t row = problem.heads * problem.width, first_value = image * problem.tokens * row + head * problem.width;
  const Sources<T, S> sources{{static_cast<const S*>(copies.values), padded, kZeros.channel},
                              {static_cast<const S*>(in.value) + first_value, row, kZeros.channel}};
  S* first = output + image * problem.queries * row + head * problem.width;
  // What the next query samples in place is fetched while this one's samples are summed.
  const int64_t ahead = lanes.reads_in_place ? 1 : 0;
  Corners<T> located[2][LevelLanes<T>::kBlocks];
  for (int64_t next = begin; next < end + ahead; ++next) {
    if (next < end) {
      source.start(next);
      fetch_ahead(first + next * row, row, problem.width);
      for (int block = 0; block < lanes.blocks; ++block) {
        Corners<T>& corners = located[next & ahead][block];
        locate<T>(lanes, block, source.points(block), corners);
        fetch_in_place<T, const S, kVectors>(lanes.in_place_lanes(block), corners, sources.in_place);
      }
    }
    const int64_t query = next - ahead;
    if (query < begin) continue;
    sum_samples<T, S, kVectors>(problem, lanes, located[query & ahead], sources, first + query * row);
  }
}

}  // namespace tokendetr::TOKENDETR_ISA
