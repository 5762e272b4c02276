// The functions of this operator that module.cpp registers.
#pragma once

#include "../common/stable_abi.h"

namespace tokendetr {

void add_cpu_operators(torch::stable::detail::StableLibrary& library);
void add_cuda_operators(torch::stable::detail::StableLibrary& library);

}  // namespace tokendetr
