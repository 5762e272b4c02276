// From locations to corners: the arithmetic that is done for many samples of one query and head at once.
//
// In padded values (padded_values.h) every level has a border of zeros, so the token of a sample's upper left corner
// is enough and nothing is ever out of range; samples outside the level or not finite point into the border. If a level
// is read in place, each of the four corners has its own token, and -1 stands for zeros.
#pragma once

namespace tokendetr::TOKENDETR_ISA {

// Neighboring samples whose levels are all copied, or all read in place.
struct Run {
  int first;
  int end;
  bool copied;
};

// Some lanes of a block.
struct Visits {
  const int64_t* row_steps;  // of the block's lanes
  const int32_t* lane;
  int count;
};

// Lane tables of the samples of a head, in blocks of as many samples as a vector has lanes. Lanes past the last sample
// belong to the first level and get weight 0.
template <class T>
struct LevelLanes {
  static constexpr int kBlocks = kMaxSamples / kLanes<T>;
  Vec<T> width[kBlocks];
  Vec<T> height[kBlocks];
  Index<T> row[kBlocks];       // tokens from one row to the next
  Index<T> origin[kBlocks];    // token of pixel (0, 0)
  Index<T> in_place[kBlocks];  // -1 where the level is read in place, else 0
  int32_t level[kMaxSamples];
  int64_t row_step[kMaxSamples];     // `row` again, for address arithmetic
  int32_t visit_order[kMaxSamples];  // of a block's lanes in the backward, copied ones first; see set_visit_order()
  int copied[kBlocks];               // how many of a block's lanes are copied
  int in_place_count[kBlocks];       // and how many are not
  Run run[kMaxLevels];
  int runs = 0;
  int blocks;
  bool reads_in_place = false;  // any level

  TOKENDETR_INLINE Visits copied_lanes(int block) const {
    return {row_step + block * kLanes<T>, visit_order + block * kLanes<T>, copied[block]};
  }
  TOKENDETR_INLINE Visits in_place_lanes(int block) const {
    return {row_step + block * kLanes<T>, visit_order + block * kLanes<T> + copied[block], in_place_count[block]};
  }
};

template <class T>
void set_runs(const Problem& problem, LevelSet copied, LevelLanes<T>& lanes) {
  for (int l = 0; l < problem.levels; ++l) {
    const bool own = has_level(copied, l);
    if (!own) lanes.reads_in_place = true;
    const int first = l * problem.points;
    if (lanes.runs == 0 || lanes.run[lanes.runs - 1].copied != own) lanes.run[lanes.runs++] = {first, first, own};
    lanes.run[lanes.runs - 1].end += problem.points;
  }
}

// The backward adds each sample to its rows of the gradient. Points of one level often share rows, and each would have
// to read back what the one before it has just stored; samples of different levels never do, so the levels alternate.
template <class T>
void set_visit_order(const Problem& problem, LevelSet copied, LevelLanes<T>& lanes) {
  for (int block = 0; block < lanes.blocks; ++block) {
    const int first = block * kLanes<T>, left = problem.samples() - first;
    const int count = left < kLanes<T> ? left : kLanes<T>;
    int32_t* next = lanes.visit_order + first;
    for (int point = 0; point < problem.points; ++point) {
      for (int lane = point; lane < count; lane += problem.points) {
        if (has_level(copied, lanes.level[first + lane])) *next++ = lane;
      }
    }
    lanes.copied[block] = static_cast<int>(next - lanes.visit_order) - first;
    lanes.in_place_count[block] = count - lanes.copied[block];
    for (int lane = 0; lane < count; ++lane) {
      if (!has_level(copied, lanes.level[first + lane])) *next++ = lane;
    }
  }
}

template <class T>
LevelLanes<T> level_lanes(const Problem& problem, LevelSet copied) {
  LevelLanes<T> lanes;
  const int samples = problem.samples();
  lanes.blocks = (samples + kLanes<T> - 1) / kLanes<T>;
  int64_t starts[kMaxLevels];
  padded_starts(problem, copied, starts);
  for (int i = 0; i < lanes.blocks * kLanes<T>; ++i) {
    const int l = i < samples ? i / problem.points : 0;
    const Level& level = problem.level[l];
    const bool own = has_level(copied, l);
    const int64_t row = own ? padded_row(level) : level.width;
    const int64_t origin = own ? starts[l] + row + 1 : level.start;
    const int block = i / kLanes<T>, lane = i % kLanes<T>;
    lanes.width[block][lane] = static_cast<T>(level.width);
    lanes.height[block][lane] = static_cast<T>(level.height);
    lanes.row[block][lane] = static_cast<int32_t>(row);
    lanes.origin[block][lane] = static_cast<int32_t>(origin);
    lanes.in_place[block][lane] = own ? 0 : -1;
    lanes.level[i] = l;
    lanes.row_step[i] = row;
  }
  set_runs<T>(problem, copied, lanes);
  set_visit_order<T>(problem, copied, lanes);
  return lanes;
}

// A block of samples: pixel coordinates and attention weight.
template <class T>
struct Points {
  Vec<T> x;
  Vec<T> y;
  Vec<T> weight;
};

// A block after location: corner c = 2 * lower + right has weight `weight[c]` (attention included).
template <class T>
struct Corners {
  Vec<T> weight[4];
  Index<T> token[4];  // of copied levels only [0] counts
};

template <class T>
struct Fractions {  // what the backward needs besides the corners
  Vec<T> x;
  Vec<T> y;
  Vec<T> weight;
  Mask<T> inside;  // the sample touches its level
};

template <class T>
TOKENDETR_INLINE Fractions<T> locate(const LevelLanes<T>& lanes, int block, const Points<T>& points,
                                     Corners<T>& corners) {
  const Vec<T> width = lanes.width[block], height = lanes.height[block];
  const Mask<T> inside = (points.x > T(-1)) & (points.x < width) & (points.y > T(-1)) & (points.y < height);
  const Vec<T> x = inside ? points.x : Vec<T>{};
  const Vec<T> y = inside ? points.y : height;  // the row of zeros under the level
  const Vec<T> left = floor_small(x), top = floor_small(y);
  const Vec<T> fx = x - left, fy = y - top, gx = T(1) - fx, gy = T(1) - fy;
  const Vec<T> upper = gy * points.weight, lower = fy * points.weight;
  corners.weight[0] = upper * gx;
  corners.weight[1] = upper * fx;
  corners.weight[2] = lower * gx;
  corners.weight[3] = lower * fx;
  const Index<T> column = __builtin_convertvector(left, Index<T>), line = __builtin_convertvector(top, Index<T>);
  const Index<T> first = lanes.origin[block] + line * lanes.row[block] + column;
  corners.token[0] = first;
  if (lanes.reads_in_place) {
    const Index<T> columns = __builtin_convertvector(width, Index<T>);
    const Index<T> lines = __builtin_convertvector(height, Index<T>);
    const Index<T> none = Index<T>{} - 1;
    const auto has_left = column >= 0, has_right = column < columns - 1;
    const auto has_upper = (line >= 0) & (line < lines), has_lower = line < lines - 1;
    corners.token[0] = ((has_upper & has_left) | ~lanes.in_place[block]) ? first : none;
    corners.token[1] = (has_upper & has_right) ? first + 1 : none;
    corners.token[2] = (has_lower & has_left) ? first + lanes.row[block] : none;
    corners.token[3] = (has_lower & has_right) ? first + lanes.row[block] + 1 : none;
  }
  return {fx, fy, points.weight, inside};
}

// Gradients of a block's samples, from the dot products of their four corners with the incoming gradient.
template <class T>
struct SampleGradients {
  Vec<T> x;  // per pixel
  Vec<T> y;
  Vec<T> weight;
};

template <class T>
TOKENDETR_INLINE SampleGradients<T> sample_gradients(const Fractions<T>& f, const Vec<T> dot[4]) {
  const Vec<T> gx = T(1) - f.x, gy = T(1) - f.y;
  const Vec<T> along_x = (gy * (dot[1] - dot[0]) + f.y * (dot[3] - dot[2])) * f.weight;
  const Vec<T> along_y = (gx * (dot[2] - dot[0]) + f.x * (dot[3] - dot[1])) * f.weight;
  const Vec<T> sampled = gy * (gx * dot[0] + f.x * dot[1]) + f.y * (gx * dot[2] + f.x * dot[3]);
  return {f.inside ? along_x : Vec<T>{}, f.inside ? along_y : Vec<T>{}, sampled};
}

}  // namespace tokendetr::TOKENDETR_ISA
