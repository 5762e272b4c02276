// Readers of the samples of a query and head, and writers of their gradients, for the plain and the fused form.
#pragma once

namespace tokendetr::TOKENDETR_ISA {

template <class T>
TOKENDETR_INLINE Pairs<T> load_some_pairs(const T* from, int count) {
  if (count >= kLanes<T>) return load_pairs<T>(from);
  T few[2 * kLanes<T>] = {};
  std::memcpy(few, from, static_cast<size_t>(2 * count) * sizeof(T));
  return load_pairs<T>(few);
}
template <class T>
TOKENDETR_INLINE void store_some_pairs(T* to, Pairs<T> pairs, int count) {
  if (count >= kLanes<T>) return store_pairs<T>(to, pairs);
  T few[2 * kLanes<T>];
  store_pairs<T>(few, pairs);
  std::memcpy(to, few, static_cast<size_t>(2 * count) * sizeof(T));
}

constexpr int kPrefetchedQueries = 4;  // how far ahead of its use a query's row is fetched

// Rows of `count` elements that are written once.
template <class T>
TOKENDETR_INLINE void put_pairs(T* to, Pairs<T> pairs, int count, bool streams) {
  if (!streams) return store_some_pairs<T>(to, pairs, count);
  stream<T>(to, first_half<T>(pairs));
  stream<T>(to + kLanes<T>, second_half<T>(pairs));
}
template <class T>
TOKENDETR_INLINE void put(T* to, Vec<T> vector, int count, bool streams) {
  streams ? stream<T>(to, vector) : store_some<T>(to, vector, count);
}

// Shared by both forms: pointers to the samples of (query, head), whose stride is fixed.
template <class T>
class SampleRows {
 public:
  SampleRows(const Problem& problem, const LevelLanes<T>& lanes, int64_t image, int64_t head)
      : samples_(problem.samples()),
        lanes_(lanes),
        heads_(problem.heads),
        first_(image * problem.queries * problem.heads + head) {}

  int count(int block) const {
    const int left = samples_ - block * kLanes<T>;
    return left < kLanes<T> ? left : kLanes<T>;
  }

 protected:
  TOKENDETR_INLINE int64_t row(int64_t query) const { return (first_ + query * heads_) * samples_; }

  bool can_stream_rows(const Gradients& gradients) const {
    return gradients.streams && can_stream<T>(gradients.locations, samples_) &&
           can_stream<T>(gradients.weights, samples_);
  }

  // Rows of one head lie far apart, which hardware prefetchers do not follow.
  TOKENDETR_INLINE void prefetch(int64_t at, const T* locations, const T* weights) const {
    at += kPrefetchedQueries * heads_ * samples_;
    const size_t bytes = static_cast<size_t>(samples_) * sizeof(T);
    for (size_t byte = 0; byte < bytes; byte += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(weights + at) + byte);
      __builtin_prefetch(reinterpret_cast<const char*>(locations + 2 * at) + 2 * byte);
      __builtin_prefetch(reinterpret_cast<const char*>(locations + 2 * at) + 2 * byte + 64);
    }
  }

  int samples_;
  const LevelLanes<T>& lanes_;
  int64_t heads_, first_;
};

template <class T>
class PlainSamples : public SampleRows<T> {
  using Rows = SampleRows<T>;

 public:
  PlainSamples(const Problem& problem, const LevelLanes<T>& lanes, const Inputs& in, int64_t image, int64_t head,
               const Gradients* gradients)
      : Rows(problem, lanes, image, head),
        locations_(static_cast<const T*>(in.locations)),
        weights_(static_cast<const T*>(in.weights)) {
    if (gradients != nullptr) {
      location_gradient_ = static_cast<T*>(gradients->locations);
      weight_gradient_ = static_cast<T*>(gradients->weights);
      streams_ = Rows::can_stream_rows(*gradients);
    }
  }

  TOKENDETR_INLINE void start(int64_t query) {
    row_ = Rows::row(query);
    Rows::prefetch(row_, locations_, weights_);
  }

  TOKENDETR_INLINE Points<T> points(int block) const {
    const int64_t at = row_ + block * kLanes<T>;
    const int count = Rows::count(block);
    const Pairs<T> location = load_some_pairs<T>(locations_ + 2 * at, count);
    return {location.x * Rows::lanes_.width[block] - T(0.5), location.y * Rows::lanes_.height[block] - T(0.5),
            load_some<T>(weights_ + at, count)};
  }

  TOKENDETR_INLINE void add_gradient(int block, const SampleGradients<T>& gradient) {
    const int64_t at = row_ + block * kLanes<T>;
    const int count = Rows::count(block);
    put_pairs<T>(location_gradient_ + 2 * at,
                 {gradient.x * Rows::lanes_.width[block], gradient.y * Rows::lanes_.height[block]}, count, streams_);
    put<T>(weight_gradient_ + at, gradient.weight, count, streams_);
  }

  TOKENDETR_INLINE void finish_gradient() {}

 private:
  const T* locations_;
  const T* weights_;
  T* location_gradient_ = nullptr;
  T* weight_gradient_ = nullptr;
  bool streams_ = false;
  int64_t row_ = 0;
};

template <class T>
class FusedSamples : public SampleRows<T> {
  using Rows = SampleRows<T>;

 public:
  FusedSamples(const Problem& problem, const LevelLanes<T>& lanes, const Inputs& in, int64_t image, int64_t head,
               const Gradients* gradients)
      : Rows(problem, lanes, image, head),
        offsets_(static_cast<const T*>(in.locations)),
        logits_(static_cast<const T*>(in.weights)),
        boxes_(in.reference_width == 4),
        levels_(problem.levels),
        first_query_(image * problem.queries),
        reference_(static_cast<const T*>(in.reference)),
        half_per_point_(T(0.5) / static_cast<T>(problem.points)) {
    if (gradients != nullptr) {
      offset_gradient_ = static_cast<T*>(gradients->locations);
      logit_gradient_ = static_cast<T*>(gradients->weights);
      streams_ = Rows::can_stream_rows(*gradients);
      if (gradients->reference != nullptr) {
        const int64_t part = problem.batch * problem.queries * levels_ * in.reference_width;
        reference_gradient_ = static_cast<T*>(gradients->reference) + head * part;
      }
    }
    for (int block = 0; block < lanes.blocks; ++block) {
      for (int lane = 0; lane < kLanes<T>; ++lane) levels_of_[block][lane] = lanes.level[block * kLanes<T> + lane];
      first_level_[block] = lanes.level[block * kLanes<T>];
      last_level_[block] = lanes.level[block * kLanes<T> + Rows::count(block) - 1];
    }
  }

  // Softmax over all samples.
  TOKENDETR_INLINE void start(int64_t query) {
    query_ = query;
    row_ = Rows::row(query);
    Rows::prefetch(row_, offsets_, logits_);
    const T* logits = logits_ + row_;
    Vec<T> largest = broadcast<T>(-__builtin_inf());
    for (int block = 0; block < Rows::lanes_.blocks; ++block) {
      const int count = Rows::count(block);
      Vec<T> logit = load_some<T>(logits + block * kLanes<T>, count);
      if (count < kLanes<T>) logit = first_lanes(count) ? logit : broadcast<T>(-__builtin_inf());
      weight_[block] = logit;
      largest = larger<T>(largest, logit);
    }
    largest = largest_everywhere<T>(largest);
    Vec<T> total{};
    for (int block = 0; block < Rows::lanes_.blocks; ++block) {
      weight_[block] = exp_nonpositive(weight_[block] - largest);
      total += weight_[block];
    }
    const Vec<T> scale = T(1) / sum_everywhere<T>(total);
    for (int block = 0; block < Rows::lanes_.blocks; ++block) weight_[block] *= scale;
  }

  TOKENDETR_INLINE Points<T> points(int block) const {
    const Pairs<T> offset = offsets(block);
    const Vec<T> width = Rows::lanes_.width[block], height = Rows::lanes_.height[block];
    const Vec<T> x = reference(block, 0), y = reference(block, 1);
    Points<T> points;
    points.weight = weight_[block];
    if (boxes_) {
      points.x = (x + offset.x * reference(block, 2) * half_per_point_) * width - T(0.5);
      points.y = (y + offset.y * reference(block, 3) * half_per_point_) * height - T(0.5);
    } else {
      points.x = x * width + offset.x - T(0.5);
      points.y = y * height + offset.y - T(0.5);
    }
    return points;
  }

  TOKENDETR_INLINE void add_gradient(int block, const SampleGradients<T>& gradient) {
    const Vec<T> x = gradient.x * Rows::lanes_.width[block], y = gradient.y * Rows::lanes_.height[block];
    Pairs<T> to_offset{gradient.x, gradient.y};
    if (boxes_) {
      to_offset = {x * reference(block, 2) * half_per_point_, y * reference(block, 3) * half_per_point_};
    }
    put_pairs<T>(offset_gradient_ + 2 * (row_ + block * kLanes<T>), to_offset, Rows::count(block), streams_);
    if (reference_gradient_ != nullptr) add_reference_gradient(block, x, y, gradient);
    to_weight_[block] = gradient.weight;
  }

  // The softmax's backward, once all blocks are in.
  TOKENDETR_INLINE void finish_gradient() {
    Vec<T> total{};
    for (int block = 0; block < Rows::lanes_.blocks; ++block) {
      const int count = Rows::count(block);
      Vec<T> product = to_weight_[block] * weight_[block];
      if (count < kLanes<T>) product = first_lanes(count) ? product : Vec<T>{};
      total += product;
    }
    total = sum_everywhere<T>(total);
    for (int block = 0; block < Rows::lanes_.blocks; ++block) {
      put<T>(logit_gradient_ + row_ + block * kLanes<T>, weight_[block] * (to_weight_[block] - total),
             Rows::count(block), streams_);
    }
  }

 private:
  static TOKENDETR_INLINE Mask<T> first_lanes(int count) {
    Vec<T> lane;
    for (int i = 0; i < kLanes<T>; ++i) lane[i] = static_cast<T>(i);
    return lane < static_cast<T>(count);
  }

  TOKENDETR_INLINE Pairs<T> offsets(int block) const {
    return load_some_pairs<T>(offsets_ + 2 * (row_ + block * kLanes<T>), Rows::count(block));
  }

  // Number `part` of (x, y, w, h) of each lane's level.
  TOKENDETR_INLINE Vec<T> reference(int block, int part) const {
    const int64_t stride = boxes_ ? 4 : 2;
    const T* of_query = reference_ + (first_query_ + query_) * levels_ * stride + part;
    Vec<T> result = broadcast<T>(of_query[first_level_[block] * stride]);
    for (int level = first_level_[block] + 1; level <= last_level_[block]; ++level) {
      result = levels_of_[block] >= level ? broadcast<T>(of_query[level * stride]) : result;
    }
    return result;
  }

  void add_reference_gradient(int block, Vec<T> x, Vec<T> y, const SampleGradients<T>& gradient) {
    const int64_t stride = boxes_ ? 4 : 2;
    T* to = reference_gradient_ + (first_query_ + query_) * levels_ * stride;
    const Pairs<T> offset = offsets(block);
    const Mask<T> moved = (gradient.x != T(0)) | (gradient.y != T(0));
    const Vec<T> w = moved ? x * offset.x * half_per_point_ : Vec<T>{};
    const Vec<T> h = moved ? y * offset.y * half_per_point_ : Vec<T>{};
    for (int lane = 0; lane < Rows::count(block); ++lane) {
      T* level = to + Rows::lanes_.level[block * kLanes<T> + lane] * stride;
      level[0] += x[lane];
      level[1] += y[lane];
      if (boxes_) {
        level[2] += w[lane];
        level[3] += h[lane];
      }
    }
  }

  const T* offsets_;
  const T* logits_;
  bool boxes_;
  int levels_;
  int64_t first_query_;
  const T* reference_;
  T half_per_point_;
  T* offset_gradient_ = nullptr;
  T* logit_gradient_ = nullptr;
  T* reference_gradient_ = nullptr;
  bool streams_ = false;
  int64_t query_ = 0, row_ = 0;
  Vec<T> weight_[LevelLanes<T>::kBlocks];
  Vec<T> to_weight_[LevelLanes<T>::kBlocks];
  Mask<T> levels_of_[LevelLanes<T>::kBlocks];
  int first_level_[LevelLanes<T>::kBlocks];
  int last_level_[LevelLanes<T>::kBlocks];
};

}  // namespace tokendetr::TOKENDETR_ISA
