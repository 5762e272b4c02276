// The functions of these operators that module.cpp registers.
#pragma once

#include "../common/stable_abi.h"

namespace tokendetr::merging {

void add_cpu_operators(torch::stable::detail::StableLibrary& library);

}  // namespace tokendetr::merging
