// Scores as topk_valid (tokendetr/tokens/select.py) ranks them: best first, equal ones in order of position.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace tokendetr::merging {

// torch.nan_to_num with the lowest number for NaN and -infinity.
inline float ranked(float score) {
  using Limits = std::numeric_limits<float>;
  return std::isnan(score) ? Limits::lowest() : std::clamp(score, Limits::lowest(), Limits::max());
}

// The places of the best `count` scores.
class Ranking {
 public:
  const std::vector<int64_t>& best(const std::vector<float>& scores, int64_t count) {
    places_.resize(scores.size());
    std::iota(places_.begin(), places_.end(), 0);
    // Places break ties, so no two compare equal, and a partial sort is as good as a stable one.
    const auto before = [&scores](int64_t a, int64_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    };
    std::partial_sort(places_.begin(), places_.begin() + count, places_.end(), before);
    places_.resize(count);
    return places_;
  }

 private:
  std::vector<int64_t> places_;
};

}  // namespace tokendetr::merging
