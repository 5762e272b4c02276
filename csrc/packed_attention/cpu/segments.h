// The slots of a container, sorted by segment.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace tokendetr::packed {

class SlotsBySegment {
 public:
  // `segment`: of the container's slots.
  void sort(const int32_t* segment, int64_t slots) {
    slots_.clear();
    padding_.clear();
    starts_.clear();
    for (int32_t slot = 0; slot < slots; ++slot) (segment[slot] < 0 ? padding_ : slots_).push_back(slot);
    const auto before = [segment](int32_t a, int32_t b) { return segment[a] < segment[b]; };
    if (!std::is_sorted(slots_.begin(), slots_.end(), before)) std::stable_sort(slots_.begin(), slots_.end(), before);
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (i == 0 || segment[slots_[i]] != segment[slots_[i - 1]]) starts_.push_back(static_cast<int32_t>(i));
    }
    starts_.push_back(static_cast<int32_t>(slots_.size()));
  }

  Segments segments() const { return {slots_.data(), starts_.data(), static_cast<int64_t>(starts_.size()) - 1}; }
  const std::vector<int32_t>& padding() const { return padding_; }

 private:
  std::vector<int32_t> slots_, padding_, starts_;
};

}  // namespace tokendetr::packed
