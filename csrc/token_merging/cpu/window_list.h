// Windows as a list of their tokens.
#pragma once

#include <numeric>

#include "../arguments.h"

namespace tokendetr::merging {

// Windows of several sizes, smallest first.
struct Windows {
  const int64_t* member;  // flat tokens, window by window, the one that stands for it last
  const Numbers& cells;
  const Numbers& number;

  int64_t count() const { return std::accumulate(number.begin(), number.end(), int64_t{0}); }

  // Calls work(members, their number) for each window.
  template <class Work>
  void for_each(const Work& work) const {
    const int64_t* own = member;
    for (size_t z = 0; z < cells.size(); ++z) {
      for (int64_t r = 0; r < number[z]; ++r, own += cells[z]) work(own, cells[z]);
    }
  }
};

inline void check_windows(const Tensor& member, const Numbers& cells, const Numbers& number, int64_t tokens) {
  TOKENDETR_CHECK_ARGUMENT(cells.size() == number.size(), "cells and number need an entry for each size, got ",
                           cells.size(), " and ", number.size());
  int64_t members = 0;
  for (size_t z = 0; z < cells.size(); ++z) {
    TOKENDETR_CHECK_ARGUMENT(cells[z] >= 1 && cells[z] <= tokens && number[z] >= 0 && number[z] <= tokens,
                             "cells must lie in [1, ", tokens, "] and number in [0, ", tokens, "], got ", cells[z],
                             " and ", number[z]);
    members += cells[z] * number[z];
  }
  check_tensor("member", member, {members}, ScalarType::Long);
  check_indices("member", member, tokens);
}

}  // namespace tokendetr::merging
