// Memory to work in during a call.
#pragma once

#include <utility>

#include "memory.h"

namespace tokendetr {

// A thread's memory for the time of one call, as allocated() gives it. The thread keeps it for its next call: fetching
// fresh pages would cost about as much as what is done with them.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : block_(std::exchange(kept(), Block())) {
    if (bytes > block_.bytes) block_ = allocated(bytes);
  }
  ~Scratch() {
    if (kKeepsMemory && block_.bytes <= kMostKept && block_.bytes > kept().bytes) kept() = std::move(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return block_.memory.get(); }

 private:
  static constexpr int64_t kMostKept = int64_t{1} << 24;

  static Block& kept() {
    static thread_local Block block;
    return block;
  }

  Block block_;
};

}  // namespace tokendetr
