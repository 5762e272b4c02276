// Blocks of memory to work in and to return results in.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "check.h"

namespace tokendetr {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeepsMemory = false;  // so that every byte behind what was asked for is found
#else
constexpr bool kKeepsMemory = true;
#endif

constexpr int64_t kHugePage = int64_t{1} << 21;

struct Block {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory;
  int64_t bytes = 0;
};

// At least `bytes`, 64-byte aligned and not initialized, large ones on huge pages: touching 4 KiB pages one by one
// would cost as much as the kernels.
inline Block allocated(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage && kKeepsMemory ? kHugePage : 64;
  const int64_t whole = (bytes + alignment - 1) / alignment * alignment;
  Block block{std::unique_ptr<void, Block::Free>(std::aligned_alloc(alignment, whole)), whole};
  TOKENDETR_CHECK(block.memory != nullptr, "not enough memory: Tried to allocate ", whole, " bytes");
#if defined(__linux__)
  if (alignment == kHugePage) madvise(block.memory.get(), whole, MADV_HUGEPAGE);  // advice: may be refused
#endif
  return block;
}

}  // namespace tokendetr
