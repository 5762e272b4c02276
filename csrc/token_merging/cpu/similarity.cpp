// How similar tokens are: the coherence of windows, and unit vectors of the tokens that are compared one by one.
#include <algorithm>
#include <array>
#include <cmath>

#include "../../common/parallel.h"
#include "operators.h"
#include "window_list.h"

namespace tokendetr::merging {
namespace {

constexpr int64_t kLanes = 16;

// Sums in lanes: the order of the additions is the same for every row, so equal rows have equal sums.
float sum_of_squares(const float* row, int64_t channels) {
  std::array<float, kLanes> lanes{};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += row[c + lane] * row[c + lane];
  }
  for (int64_t lane = 0; c < channels; ++c, ++lane) lanes[lane] += row[c] * row[c];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// At least ZERO_NORM (tokendetr/tokens/norms.py); a NaN stays one.
float norm(const float* row, int64_t channels) { return std::max(std::sqrt(sum_of_squares(row, channels)), 1e-12f); }

int64_t rows_worth_a_thread(int64_t channels) {
  constexpr int64_t kNumbers = int64_t{1} << 16;
  return kNumbers / std::max<int64_t>(channels, 1) + 1;
}

// EQUAL_TOKENS (tokendetr/tokens/windows.py).
constexpr float kEqualTokens = 1 - 1e-6f;

// The squared length of the mean of each window's unit vectors.
void coherence(const float* x, const Windows& windows, int64_t channels, float* score) {
  const int64_t* member = windows.member;
  for (size_t g = 0; g < windows.cells.size(); ++g) {
    const int64_t cells = windows.cells[g], number = windows.number[g];
    parallel_for(0, number, rows_worth_a_thread(cells * channels), [&](int64_t begin, int64_t end) {
      std::vector<float> mean(channels);
      for (int64_t s = begin; s < end; ++s) {
        std::fill(mean.begin(), mean.end(), 0.0f);
        for (int64_t p = s * cells; p < (s + 1) * cells; ++p) {
          const float* row = x + member[p] * channels;
          const float weight = 1 / norm(row, channels);
          for (int64_t c = 0; c < channels; ++c) mean[c] += row[c] * weight;
        }
        for (float& each : mean) each /= static_cast<float>(cells);
        score[s] = std::min(sum_of_squares(mean.data(), channels), kEqualTokens);
      }
    });
    member += number * cells;
    score += number;
  }
}

}  // namespace

std::tuple<Tensor, Tensor> token_similarity(const Tensor& x, const Tensor& token, const Numbers& number,
                                            const Numbers& cells, int64_t start) {
  TOKENDETR_CHECK_ARGUMENT(x.dim() == 3, "x must have shape [B, N, C], got ", shape_of(x));
  const int64_t images = x.size(0), tokens = x.size(1), channels = x.size(2);
  check_tensor("x", x, {images, tokens, channels}, ScalarType::Float);
  check_counts("start", {start}, 1, tokens);
  const Tensor rows = dense(x), members = dense(token);
  check_windows(members, cells, number, images * tokens);
  const Windows windows{members.const_data_ptr<int64_t>(), cells, number};
  const Tensor score = empty_tensor({windows.count()}, x, ScalarType::Float);
  const Tensor unit = empty_tensor({images, tokens - start, channels}, x, ScalarType::Float);
  const float* from = rows.const_data_ptr<float>();
  coherence(from, windows, channels, score.mutable_data_ptr<float>());
  float* to = unit.mutable_data_ptr<float>();
  for (int64_t b = 0; b < images; ++b) {
    for (int64_t n = start; n < tokens; ++n, to += channels) {
      const float* row = from + (b * tokens + n) * channels;
      const float length = norm(row, channels);
      for (int64_t c = 0; c < channels; ++c) to[c] = row[c] / length;
    }
  }
  return {score, unit};
}

}  // namespace tokendetr::merging
