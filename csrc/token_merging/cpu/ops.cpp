// The CPU kernels as operators. They run in one thread: what they replace is many small operators, each of which costs
// more than its arithmetic.
#include "../registration.h"
#include "operators.h"

namespace tokendetr::merging {

void add_cpu_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("plan_merge", TORCH_BOX(&plan_merge));
  library.impl("token_similarity", TORCH_BOX(&token_similarity));
  library.impl("merge_tokens", TORCH_BOX(&merge_tokens));
}

}  // namespace tokendetr::merging
