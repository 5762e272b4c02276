// PyTorch's stable ABI: the only headers of PyTorch that are included. One build serves every release from the one
// targeted here on, since nothing but C functions of a frozen interface is called.
//
// What that interface lacks, and its replacement here:
// * Python's TypeError: every refused argument is a std::invalid_argument, which PyTorch turns into ValueError; the
//   functions of tokendetr.ops tell the two apart.
// * autograd and autocast: registered by Python, see tokendetr/ops/*/registration.py.
// * the flag for deterministic algorithms: an argument of the backward operators.
// * the number of multiprocessors of a device: read from the CUDA runtime.
// * arange and searchsorted: a kernel of our own in place of them in the deterministic backward.
#pragma once

#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>
