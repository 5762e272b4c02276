// The best windows of each class.
#include <numeric>

#include "ranking.h"
#include "steps.h"

namespace tokendetr::merging {
namespace {

// The tokens of all chosen windows together.
int64_t chosen_tokens(const Numbers& number, const Numbers& cells, const Numbers& counts, int64_t windows,
                      int64_t widest) {
  TOKENDETR_CHECK_ARGUMENT(number.size() == cells.size() && number.size() == counts.size(),
                           "number, cells and counts need an entry for each class, got ", number.size(), ", ",
                           cells.size(), " and ", counts.size());
  int64_t all = 0, chosen = 0;
  for (size_t g = 0; g < number.size(); ++g) {
    TOKENDETR_CHECK_ARGUMENT(number[g] >= 0 && number[g] <= windows && counts[g] >= 0 && counts[g] <= number[g],
                             "counts must lie between 0 and a class's number of windows, got ", counts[g], " of ",
                             number[g]);
    TOKENDETR_CHECK_ARGUMENT(cells[g] >= 1 && cells[g] <= widest, "cells must lie in [1, ", widest, "], got ",
                             cells[g]);
    all += number[g];
    chosen += counts[g] * cells[g];
  }
  TOKENDETR_CHECK_ARGUMENT(all == windows, "the classes have ", all, " windows, score ", windows);
  return chosen;
}

// The classes in the order of their windows' sizes.
Numbers by_cells(const Numbers& cells) {
  Numbers order(cells.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&cells](int64_t a, int64_t b) { return cells[a] < cells[b]; });
  return order;
}

}  // namespace

Tensor choose_windows(const Tensor& score, const Tensor& token, const Numbers& number, const Numbers& cells,
                      const Numbers& counts) {
  TOKENDETR_CHECK_ARGUMENT(token.dim() == 2, "token must have shape [S, X], got ", shape_of(token));
  const int64_t windows = token.size(0), widest = token.size(1);
  check_tensor("score", score, {windows}, ScalarType::Float);
  check_tensor("token", token, {windows, widest}, ScalarType::Long);
  const int64_t length = chosen_tokens(number, cells, counts, windows, widest);
  const Tensor scores = dense(score), tokens = dense(token);
  const float* from = scores.const_data_ptr<float>();
  const int64_t* members = tokens.const_data_ptr<int64_t>();
  const Tensor result = empty_tensor({length}, token, ScalarType::Long);
  int64_t* to = result.mutable_data_ptr<int64_t>();
  Numbers first(number.size());
  std::exclusive_scan(number.begin(), number.end(), first.begin(), int64_t{0});
  std::vector<float> own;
  Ranking ranking;
  for (const int64_t g : by_cells(cells)) {
    own.resize(number[g]);
    std::transform(from + first[g], from + first[g] + number[g], own.begin(), ranked);
    for (const int64_t place : ranking.best(own, counts[g])) {
      const int64_t* end = members + (first[g] + place + 1) * widest;
      to = std::copy(end - cells[g], end, to);
    }
  }
  return result;
}

}  // namespace tokendetr::merging
