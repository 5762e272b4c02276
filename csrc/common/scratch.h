// Memory to work in during a call.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#include "check.h"

namespace tokendetr {

// A thread's memory for the time of one call, 64-byte aligned and not initialized, large ones on huge pages. The thread
// keeps it for its next call: fetching fresh pages would cost about as much as what is done with them.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : block_(std::exchange(kept(), Block())) {
    if (bytes > block_.bytes) block_ = allocated(bytes);
  }
  ~Scratch() {
    if (block_.bytes <= kMostKept && block_.bytes > kept().bytes) kept() = std::move(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return block_.memory.get(); }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int64_t kMostKept = -1;  // so that every byte behind what was asked for is found
#else
  static constexpr int64_t kMostKept = int64_t{1} << 24;
#endif

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    int64_t bytes = 0;
  };

  static Block& kept() {
    static thread_local Block block;
    return block;
  }

  static Block allocated(int64_t bytes) {
    constexpr int64_t kHuge = int64_t{1} << 21;
    const int64_t alignment = bytes >= kHuge && kMostKept > 0 ? kHuge : 64;
    const int64_t whole = (bytes + alignment - 1) / alignment * alignment;
    Block block{std::unique_ptr<void, Free>(std::aligned_alloc(alignment, whole)), whole};
    TOKENDETR_CHECK(block.memory != nullptr, "not enough memory: ", whole, " bytes to work in cannot be allocated");
#if defined(__linux__)
    if (alignment == kHuge) madvise(block.memory.get(), whole, MADV_HUGEPAGE);  // advice: may be refused
#endif
    return block;
  }

  Block block_;
};

}  // namespace tokendetr
