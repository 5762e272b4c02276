// Rarity of a level's tokens, and the match of the common ones to the rare.
#include <algorithm>
#include <cmath>

#include "ranking.h"
#include "steps.h"

namespace tokendetr::merging {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Level {
  int64_t images, tokens;
};

// Both products of a pair may be rounded differently: their mean is the same for both tokens.
void symmetrize(const float* cosine, int64_t tokens, float* mean) {
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t j = 0; j < tokens; ++j) mean[i * tokens + j] = (cosine[i * tokens + j] + cosine[j * tokens + i]) / 2;
  }
}

// Pairs that do not count get -infinity: a token with itself, and with padding.
void hide(const bool* valid, int64_t tokens, float* cosine) {
  for (int64_t i = 0; i < tokens; ++i) {
    float* row = cosine + i * tokens;
    row[i] = -kInfinity;
    for (int64_t j = 0; valid != nullptr && j < tokens; ++j) {
      if (!valid[j]) row[j] = -kInfinity;
    }
  }
}

bool counts_as_pair(const bool* valid, int64_t i, int64_t j) { return i != j && (valid == nullptr || valid[j]); }

// The mean of 1 / cosine over the other tokens, summed in double.
void rarity(const float* cosine, const bool* valid, int64_t tokens, int64_t valid_count, float min_cosine,
            float* score) {
  const auto others = static_cast<double>(std::max<int64_t>(valid_count - 1, 1));
  for (int64_t i = 0; i < tokens; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < tokens; ++j) {
      const float c = cosine[i * tokens + j];
      // Not std::max: a NaN stays one.
      if (counts_as_pair(valid, i, j)) sum += static_cast<double>(1.0f / (c < min_cosine ? min_cosine : c));
    }
    score[i] = static_cast<float>(sum / others);
  }
}

// A row's `count` highest columns, the first of equals (a NaN is highest), and whether each is a pair that counts.
void nearest(float* row, int64_t tokens, int64_t count, bool all_count, int64_t* column, bool* exists) {
  for (int64_t t = 0; t < count; ++t) {
    int64_t best = 0;
    for (int64_t j = 1; j < tokens && !std::isnan(row[best]); ++j) {
      if (!(row[j] <= row[best])) best = j;
    }
    column[t] = best;
    exists[t] = all_count || row[best] > -kInfinity;
    row[best] = -kInfinity;
  }
}

// Ranks one image's tokens in `order` and marks the best `count`; `index` gets the first `length` of the ranking.
class Ranker {
 public:
  void rank(const float* score, const bool* valid, const int64_t* order, int64_t tokens, int64_t count, int64_t length,
            int64_t* index, bool* important) {
    own_.resize(tokens);
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t n = order[i];
      own_[i] = valid == nullptr || valid[n] ? ranked(score[n]) : -kInfinity;
    }
    const std::vector<int64_t>& places = ranking_.best(own_, length);
    for (int64_t k = 0; k < length; ++k) index[k] = order[places[k]];
    std::fill(important, important + tokens, false);
    for (int64_t k = 0; k < count; ++k) important[index[k]] = true;
  }

 private:
  std::vector<float> own_;
  Ranking ranking_;
};

// Which neighbors absorb (important ones of tokens that are not), as a list and as a matrix.
void absorb(const bool* important, const bool* valid, const int64_t* neighbor, int64_t tokens, int64_t count,
            bool* absorbs, float* absorbed) {
  std::fill(absorbed, absorbed + tokens * tokens, 0.0f);
  for (int64_t n = 0; n < tokens; ++n) {
    const bool merges = !important[n] && (valid == nullptr || valid[n]);
    for (int64_t t = n * count; t < (n + 1) * count; ++t) {
      absorbs[t] = absorbs[t] && merges && important[neighbor[t]];
      if (absorbs[t]) absorbed[n * tokens + neighbor[t]] = 1.0f;
    }
  }
}

// One image of a level: what is known of its tokens, and where its match goes.
struct Image {
  const float* cosine;
  const int64_t* order;
  const bool* valid;   // null: all are real
  const float* given;  // scores that replace rarity, or null
  int64_t valid_count, count;
  float* score;
  bool* important;
  int64_t* index;
  int64_t* neighbor;
  bool* absorbs;
  float* absorbed;
};

class Matcher {
 public:
  Matcher(int64_t tokens, int64_t length, int64_t neighbors, float min_cosine)
      : tokens_(tokens),
        length_(length),
        neighbors_(neighbors),
        min_cosine_(min_cosine),
        similarity_(tokens * tokens) {}

  void match(const Image& image) {
    float* similarity = similarity_.data();
    symmetrize(image.cosine, tokens_, similarity);
    if (image.given != nullptr) {
      std::copy_n(image.given, tokens_, image.score);
    } else {
      rarity(similarity, image.valid, tokens_, image.valid_count, min_cosine_, image.score);
    }
    for (int64_t n = 0; image.valid != nullptr && n < tokens_; ++n) {
      if (!image.valid[n]) image.score[n] = -kInfinity;
    }
    ranker_.rank(image.score, image.valid, image.order, tokens_, image.count, length_, image.index, image.important);
    hide(image.valid, tokens_, similarity);
    const bool all_count = image.valid == nullptr && neighbors_ < tokens_;
    for (int64_t n = 0; n < tokens_; ++n) {
      const int64_t first = n * neighbors_;
      nearest(similarity + n * tokens_, tokens_, neighbors_, all_count, image.neighbor + first, image.absorbs + first);
    }
    absorb(image.important, image.valid, image.neighbor, tokens_, neighbors_, image.absorbs, image.absorbed);
  }

 private:
  int64_t tokens_, length_, neighbors_;
  float min_cosine_;
  std::vector<float> similarity_;
  Ranker ranker_;
};

Level checked_level(const Tensor& cosine, const Tensor& order, const OptionalTensor& valid, const OptionalTensor& score,
                    const Numbers& valid_counts, const Numbers& counts, int64_t neighbors) {
  TOKENDETR_CHECK_ARGUMENT(cosine.dim() == 3, "cosine must have shape [B, U, U], got ", shape_of(cosine));
  const Level level{cosine.size(0), cosine.size(1)};
  check_tensor("cosine", cosine, {level.images, level.tokens, level.tokens}, ScalarType::Float);
  check_tensor("order", order, {level.images, level.tokens}, ScalarType::Long);
  check_indices("order", order, level.tokens);
  if (valid.has_value()) check_tensor("valid", *valid, {level.images, level.tokens}, ScalarType::Bool);
  if (score.has_value()) check_tensor("score", *score, {level.images, level.tokens}, ScalarType::Float);
  check_counts("valid_counts", valid_counts, level.images, level.tokens);
  check_counts("counts", counts, level.images, level.tokens);
  TOKENDETR_CHECK_ARGUMENT(neighbors >= 0 && neighbors <= level.tokens, "neighbors must lie in [0, ", level.tokens,
                           "], got ", neighbors);
  return level;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> match_tokens(
    const Tensor& cosine, const Tensor& order, const OptionalTensor& valid, const OptionalTensor& score,
    const Numbers& valid_counts, const Numbers& counts, int64_t neighbors, double min_cosine) {
  const Tensor products = dense(cosine), orders = dense(order);
  const OptionalTensor real = dense(valid), given = dense(score);
  const Level level = checked_level(products, orders, real, given, valid_counts, counts, neighbors);
  const int64_t images = level.images, tokens = level.tokens, pairs = tokens * tokens, found = tokens * neighbors;
  const int64_t length = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  const Tensor scores = empty_tensor({images, tokens}, cosine, ScalarType::Float);
  const Tensor important = empty_tensor({images, tokens}, cosine, ScalarType::Bool);
  const Tensor index = empty_tensor({images, length}, cosine, ScalarType::Long);
  const Tensor neighbor = empty_tensor({images, tokens, neighbors}, cosine, ScalarType::Long);
  const Tensor absorbs = empty_tensor({images, tokens, neighbors}, cosine, ScalarType::Bool);
  const Tensor absorbed = empty_tensor({images, tokens, tokens}, cosine, ScalarType::Float);
  Matcher matcher(tokens, length, neighbors, static_cast<float>(min_cosine));
  for (int64_t b = 0; b < images; ++b) {
    matcher.match({products.const_data_ptr<float>() + b * pairs, orders.const_data_ptr<int64_t>() + b * tokens,
                   real.has_value() ? real->const_data_ptr<bool>() + b * tokens : nullptr,
                   given.has_value() ? given->const_data_ptr<float>() + b * tokens : nullptr, valid_counts[b],
                   counts[b], scores.mutable_data_ptr<float>() + b * tokens,
                   important.mutable_data_ptr<bool>() + b * tokens, index.mutable_data_ptr<int64_t>() + b * length,
                   neighbor.mutable_data_ptr<int64_t>() + b * found, absorbs.mutable_data_ptr<bool>() + b * found,
                   absorbed.mutable_data_ptr<float>() + b * pairs});
  }
  return {scores, important, index, neighbor, absorbs, absorbed};
}

}  // namespace tokendetr::merging
