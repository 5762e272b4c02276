// The types that values are stored in, free of torch types. Coordinates and sums are double for float64, else float.
#pragma once

namespace tokendetr {

enum class Storage { kFloat64, kFloat32, kBFloat16, kFloat16 };

}  // namespace tokendetr
