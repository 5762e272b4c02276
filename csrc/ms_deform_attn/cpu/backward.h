// The backward of one head of one image: the thread that runs it owns the head's gradient, so nothing races and every
// sum has a fixed order.
#pragma once

namespace tokendetr::TOKENDETR_ISA {

// For some samples of a block and kVectors vectors of channels: adds the corners' dot products with the incoming
// gradient to dot[sample] (partial sums, a quarter of the lanes for each corner; the first chunk of channels sets
// them), and the weighted incoming gradient to the value gradient.
template <class T, class S, bool kCopied, bool kByTwos, int kVectors, bool kFirst>
TOKENDETR_INLINE void scatter(const Visits& visits, const Corners<T>& corners, const Rows<T, const S, kCopied>& rows,
                              const Rows<T, T, kCopied>& gradients, int64_t channel, const S* incoming, int64_t width,
                              Vec<T>* dot) {
  Vec<T> g[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = channel + v * kLanes<T>;
    g[v] = at < width ? load_some<T>(incoming + at, width - at) : Vec<T>{};
  }
  if constexpr (kByTwos) to_twos<T, kVectors>(g);
  for (int i = 0; i < visits.count; ++i) {
    const int lane = visits.lane[i];
    const S* from[4];
    T* to[4];
    rows.corners(corners, lane, visits.row_steps[lane], channel, from);
    gradients.corners(corners, lane, visits.row_steps[lane], channel, to);
    Vec<T> products[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vec<T> weight = broadcast<T>(lane_of(corners.weight[c], lane, T()));
      Vec<T> channels[kVectors];
      load_channels<T, kByTwos, kVectors>(from[c], channels);
      products[c] = channels[0] * g[0];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        if (v > 0) products[c] += channels[v] * g[v];
        T* place = to[c] + v * kLanes<T>;
        store<T>(place, load<T>(place) + weight * g[v]);
      }
    }
    const Vec<T> sums = sums_in_quarters<T>(products);
    dot[lane] = kFirst ? sums : dot[lane] + sums;
  }
}

// All channels of those samples. kVectors: vectors per head where that is known at compile time, else 0.
template <class T, class S, bool kCopied, int kVectors>
TOKENDETR_INLINE void scatter_samples(const Visits& visits, const Corners<T>& corners,
                                      const Rows<T, const S, kCopied>& rows, const Rows<T, T, kCopied>& gradients,
                                      const S* incoming, int64_t width, Vec<T>* dot) {
  constexpr int kChunk = kVectors > 0 ? kVectors : 1;
  constexpr bool kByTwos = goes_by_twos<T, S>(kVectors);
  scatter<T, S, kCopied, kByTwos, kChunk, true>(visits, corners, rows, gradients, 0, incoming, width, dot);
  if constexpr (kVectors == 0) {
    for (int64_t channel = kLanes<T>; channel < width; channel += kLanes<T>) {
      scatter<T, S, kCopied, false, 1, false>(visits, corners, rows, gradients, channel, incoming, width, dot);
    }
  }
}

template <class T, class S, class Samples, int kVectors>
void backward_queries(const Problem& problem, const Inputs& in, int64_t image, int64_t head, const Copies& copies,
                      const Gradients& gradient) {
  static const ZeroRow<S> kZeros{};
  ZeroRow<T> discarded{};
  const LevelLanes<T> lanes = level_lanes<T>(problem, copies.levels);
  Samples source(problem, lanes, in, image, head, &gradient);
  const int64_t padded = kVectors > 0 ? kVectors * kLanes<T> : padded_width<T>(problem);
  const int64_t row = problem.heads * problem.width, first = image * problem.tokens * row + head * problem.width;
  const Rows<T, const S, true> copied{static_cast<const S*>(copies.values), padded, kZeros.channel};
  const Rows<T, T, true> copied_gradients{static_cast<T*>(copies.gradient), padded, discarded.channel};
  const Rows<T, const S, false> in_place{static_cast<const S*>(in.value) + first, row, kZeros.channel};
  const Rows<T, T, false> in_place_gradients{static_cast<T*>(gradient.value) + first, row, discarded.channel};
  const S* first_incoming =
      static_cast<const S*>(gradient.output) + image * problem.queries * row + head * problem.width;
  for (int64_t query = 0; query < problem.queries; ++query) {
    const S* incoming = first_incoming + query * row;
    source.start(query);
    fetch_ahead(incoming, row, problem.width);
    for (int block = 0; block < lanes.blocks; ++block) {
      Corners<T> corners;
      const Fractions<T> fractions = locate<T>(lanes, block, source.points(block), corners);
      Vec<T> dot[kLanes<T>];
      const int count = source.count(block);
      for (int lane = count; lane < kLanes<T>; ++lane) dot[lane] = Vec<T>{};
      if constexpr (std::is_same_v<S, T>) {
        fetch_in_place<T, const S, kVectors>(lanes.in_place_lanes(block), corners, in_place);
        fetch_in_place<T, T, kVectors>(lanes.in_place_lanes(block), corners, in_place_gradients);
      }
      scatter_samples<T, S, true, kVectors>(lanes.copied_lanes(block), corners, copied, copied_gradients, incoming,
                                            problem.width, dot);
      if constexpr (std::is_same_v<S, T>) {
        scatter_samples<T, S, false, kVectors>(lanes.in_place_lanes(block), corners, in_place, in_place_gradients,
                                               incoming, problem.width, dot);
      }
      Vec<T> dots[4];
      sum_all_quarters<T>(dot, dots);
      source.add_gradient(block, sample_gradients<T>(fractions, dots));
    }
    source.finish_gradient();
  }
}

}  // namespace tokendetr::TOKENDETR_ISA
