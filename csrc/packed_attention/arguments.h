// Argument checks of packed attention: every size, type and device is verified before a pointer is touched.
#pragma once

#include "../common/tensors.h"
#include "problem.h"

namespace tokendetr::packed {

// The tensors of a call as the operators get them.
struct Arguments {
  const Tensor& query;
  const Tensor& key;
  const Tensor& value;
  const Tensor& segment;
  double scale;
  const OptionalTensor& position;
  const OptionalTensor& bias_table;
  const OptionalTensor& key_bias;
};

// Raises std::invalid_argument naming the argument, else returns the sizes.
Problem checked_problem(const Arguments& arguments);
// The same for what a backward gets beside them.
void check_backward(const Arguments& arguments, const Tensor& grad_output, bool wants_table_gradient,
                    bool wants_key_bias_gradient);

// A call's tensors as kernels take them: queries, keys and values with a dense last dimension (aligned to `alignment`
// bytes, as are their strides), the rest contiguous with biases in the type of the sums.
struct Prepared {
  Problem problem;
  Storage storage;
  Tensor query, key, value, segment;
  OptionalTensor position, table, key_bias;

  Prepared(const Arguments& arguments, int64_t alignment);
  Inputs inputs() const;
  bool empty() const { return problem.containers == 0 || problem.slots == 0; }
};

Tensor dense_rows(const Tensor& tensor, int64_t alignment);
Read read_of(const Tensor& tensor);
Write write_of(const Tensor& tensor);

}  // namespace tokendetr::packed
