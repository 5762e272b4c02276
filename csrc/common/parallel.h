// PyTorch's threads.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

#include "stable_abi.h"

namespace tokendetr {

inline int64_t thread_count() { return torch::stable::get_num_threads(); }

// Calls work(begin, end) on parts of [begin, end), at least `grain` long. The first exception of a part is rethrown
// here, because the stable ABI would lose its message.
template <class Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Work& work) {
  std::exception_ptr failure;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      work(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace tokendetr
