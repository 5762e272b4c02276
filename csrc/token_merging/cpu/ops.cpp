// The CPU kernels as operators. Each replaces many small operators, whose calls cost more than their arithmetic.
#include "../registration.h"
#include "operators.h"

namespace tokendetr::merging {

void add_cpu_operators(torch::stable::detail::StableLibrary& library) {
  library.impl("plan_merge", TORCH_BOX(&plan_merge));
  library.impl("token_similarity", TORCH_BOX(&token_similarity));
  library.impl("merge_tokens", TORCH_BOX(&merge_tokens));
}

}  // namespace tokendetr::merging
