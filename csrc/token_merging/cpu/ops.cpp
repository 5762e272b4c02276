// The CPU kernels as operators. They run in one thread: what they replace is many small operators, each of which costs
// more than its arithmetic.
#include "../registration.h"
#include "operators.h"

namespace tokendetr::merging {

void add_cpu_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("choose_windows", TORCH_BOX(&choose_windows));
  library.impl("match_tokens", TORCH_BOX(&match_tokens));
  library.impl("merged_order", TORCH_BOX(&merged_order));
}

}  // namespace tokendetr::merging
