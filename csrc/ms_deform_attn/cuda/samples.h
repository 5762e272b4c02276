// From locations (or offsets, logits and reference points) to corners and back to gradients: one sample per lane.
#pragma once

#include "geometry.h"
#include "tensors.h"

namespace tokendetr::cuda {

// What all lanes of a group need of a sample: its four corners and their weights, attention included.
// Corner c = 2 * lower + right. A corner outside its level is moved onto its neighbor inside, and the two share that
// neighbor's weight in halves: no corner needs a test of its own, and none has the weight 0 that would turn an
// infinite value into NaN.
template <class T>
struct alignas(16) Entry {
  int64_t
      offset;  // of the upper left corner from the first channel of (image, head), in elements; < 0: sample is outside
  uint32_t right;  // elements to the right corners: 0 if they coincide
  uint32_t down;
  T weight[4];
};

// What the owning lane keeps of a sample.
template <class T>
struct Located {
  T fx, fy, weight;
  int32_t cell;  // number of its cell in the level
  bool has_left, has_right, has_upper, has_lower;
  bool inside;
};

template <class T>
TOKENDETR_DEVICE Located<T> locate(const LevelGeometry& level, int64_t row, T x, T y, T weight, Entry<T>& entry) {
  Located<T> sample{T(0), T(0), weight, 0, false, false, false, false, false};
  entry.offset = -1;
  entry.right = entry.down = 0;
  entry.weight[0] = weight;  // times a zero: a weight that is not finite still shows
  entry.weight[1] = entry.weight[2] = entry.weight[3] = T(0);
  // False for NaN; only numbers that fit are converted to integers.
  if (x > T(-1) && x < static_cast<T>(level.width) && y > T(-1) && y < static_cast<T>(level.height)) {
    const T left = round_down(x), top = round_down(y);
    const int32_t column = static_cast<int32_t>(left), line = static_cast<int32_t>(top);
    sample.inside = true;
    sample.fx = x - left;
    sample.fy = y - top;
    sample.cell = (line + 1) * (level.width + 1) + column + 1;
    sample.has_left = column >= 0;
    sample.has_right = column + 1 < level.width;
    sample.has_upper = line >= 0;
    sample.has_lower = line + 1 < level.height;
    T to_left = T(1) - sample.fx, to_right = sample.fx, to_upper = T(1) - sample.fy, to_lower = sample.fy;
    if (!sample.has_left) to_left = to_right = to_right * T(0.5);
    if (!sample.has_right) to_left = to_right = to_left * T(0.5);
    if (!sample.has_upper) to_upper = to_lower = to_lower * T(0.5);
    if (!sample.has_lower) to_upper = to_lower = to_upper * T(0.5);
    const int32_t first_column = sample.has_left ? column : 0, first_line = sample.has_upper ? line : 0;
    entry.offset = (static_cast<int64_t>(level.start) + first_line * level.width + first_column) * row;
    entry.right = sample.has_left && sample.has_right ? static_cast<uint32_t>(row) : 0;
    entry.down = sample.has_upper && sample.has_lower ? static_cast<uint32_t>(row) * level.width : 0;
    to_upper *= weight;
    to_lower *= weight;
    entry.weight[0] = to_upper * to_left;
    entry.weight[1] = to_upper * to_right;
    entry.weight[2] = to_lower * to_left;
    entry.weight[3] = to_lower * to_right;
  }
  return sample;
}

template <class T>
struct SampleGradient {
  T x, y;  // per pixel
  T weight;
};

// Gradients of a sample, from the dot products of its four corners with the incoming gradient.
template <class T>
TOKENDETR_DEVICE SampleGradient<T> gradient_of(const Located<T>& sample, const T (&dots)[4]) {
  if (!sample.inside) return {T(0), T(0), dots[0]};  // a sum of zeros, unless the incoming gradient is not finite
  const T dot0 = sample.has_upper && sample.has_left ? dots[0] : T(0);
  const T dot1 = sample.has_upper && sample.has_right ? dots[1] : T(0);
  const T dot2 = sample.has_lower && sample.has_left ? dots[2] : T(0);
  const T dot3 = sample.has_lower && sample.has_right ? dots[3] : T(0);
  const T fx = sample.fx, fy = sample.fy, gx = T(1) - fx, gy = T(1) - fy;
  return {(gy * (dot1 - dot0) + fy * (dot3 - dot2)) * sample.weight,
          (gx * (dot2 - dot0) + fx * (dot3 - dot1)) * sample.weight,
          gy * (gx * dot0 + fx * dot1) + fy * (gx * dot2 + fx * dot3)};
}

// The samples of one query and head, in either form. kPoints: points per level if known at compile time, else 0.
template <class T, int kLanes, int kPoints>
class Source {
 public:
  TOKENDETR_DEVICE Source(const Geometry& geometry, const Inputs& in, const Place& place, int lane)
      : geometry_(geometry), boxes_(in.reference_width == 4) {
    const int64_t query = place.image * geometry.queries + place.query;
    first_sample_ = (query * geometry.heads + place.head) * geometry.samples;
    locations_ = static_cast<const T*>(in.locations) + 2 * first_sample_;
    weights_ = static_cast<const T*>(in.weights) + first_sample_;
    if (in.reference == nullptr) return;
    reference_ = static_cast<const T*>(in.reference) + query * geometry.levels * in.reference_width;
    largest_ = load<1>(weights_).channel[0];
    for (int s = lane; s < geometry.samples; s += kLanes) {
      const T logit = load<1>(weights_ + s).channel[0];
      largest_ = largest_ < logit ? logit : largest_;
    }
    largest_ = largest_of_lanes<kLanes>(largest_);
    T total = 0;
    for (int s = lane; s < geometry.samples; s += kLanes) {
      total += exponential(load<1>(weights_ + s).channel[0] - largest_);
    }
    scale_ = T(1) / sum_over_lanes<kLanes>(total);  // NaN if a logit is
  }

  TOKENDETR_DEVICE bool fused() const { return reference_ != nullptr; }
  TOKENDETR_DEVICE int64_t first_sample() const { return first_sample_; }
  TOKENDETR_DEVICE int level_of(int s) const { return s / (kPoints > 0 ? kPoints : geometry_.points); }

  TOKENDETR_DEVICE T weight(int s) const {
    const T weight = load<1>(weights_ + s).channel[0];
    return fused() ? exponential(weight - largest_) * scale_ : weight;
  }

  // `real` false: a sample outside of its level.
  TOKENDETR_DEVICE Located<T> at(int s, bool real, Entry<T>& entry) const {
    const int l = real ? level_of(s) : 0;
    const LevelGeometry& level = geometry_.level[l];
    T x = -2, y = -2, weight_of_sample = 0;
    if (real) {
      const Packed<T, 2> location = load<2>(locations_ + 2 * s);
      const T columns = static_cast<T>(level.width), lines = static_cast<T>(level.height);
      x = location.channel[0];
      y = location.channel[1];
      weight_of_sample = weight(s);
      if (!fused()) {
        x = x * columns - T(0.5);
        y = y * lines - T(0.5);
      } else if (boxes_) {
        const Packed<T, 2> center = load<2>(reference_ + 4 * l), size = load<2>(reference_ + 4 * l + 2);
        x = (center.channel[0] + x * size.channel[0] * half_per_point()) * columns - T(0.5);
        y = (center.channel[1] + y * size.channel[1] * half_per_point()) * lines - T(0.5);
      } else {
        const Packed<T, 2> center = load<2>(reference_ + 2 * l);
        x = center.channel[0] * columns + x - T(0.5);
        y = center.channel[1] * lines + y - T(0.5);
      }
    }
    return locate(level, geometry_.row, x, y, weight_of_sample, entry);
  }

  // The gradient of the location or offset from that per pixel; that of the reference's (x, y, w, h) into `reference`.
  TOKENDETR_DEVICE void chain(int s, const SampleGradient<T>& gradient, T (&location)[2], T (&reference)[4]) const {
    const int l = level_of(s);
    reference[0] = gradient.x * static_cast<T>(geometry_.level[l].width);
    reference[1] = gradient.y * static_cast<T>(geometry_.level[l].height);
    reference[2] = reference[3] = T(0);
    if (!fused()) {
      location[0] = reference[0];
      location[1] = reference[1];
    } else if (!boxes_) {
      location[0] = gradient.x;
      location[1] = gradient.y;
    } else {
      const T* size = reference_ + 4 * l + 2;
      location[0] = reference[0] * size[0] * half_per_point();
      location[1] = reference[1] * size[1] * half_per_point();
      // An offset that is not finite belongs to a sample without a gradient.
      if (gradient.x != T(0)) reference[2] = reference[0] * locations_[2 * s] * half_per_point();
      if (gradient.y != T(0)) reference[3] = reference[1] * locations_[2 * s + 1] * half_per_point();
    }
  }

 private:
  TOKENDETR_DEVICE T half_per_point() const { return T(0.5) / static_cast<T>(geometry_.points); }

  const Geometry& geometry_;
  const T* locations_;
  const T* weights_;
  const T* reference_ = nullptr;
  int64_t first_sample_;
  bool boxes_;
  T largest_ = 0, scale_ = 0;
};

}  // namespace tokendetr::cuda
