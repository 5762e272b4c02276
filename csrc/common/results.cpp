#include "results.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "memory.h"

// Of PyTorch 2.11 and later, null in earlier ones. A weak reference, so that one build serves them all.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t axes, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t type,
    int32_t device_type, int32_t device_index, AtenTensorHandle* made, int32_t layout, const uint8_t* metadata,
    int64_t metadata_bytes, void (*deleter)(void* data, void* context), void* context);

namespace tokendetr {
namespace {

// Python warns of what is no number, see tokendetr/ops/library.py.
int64_t most_kept() {
  constexpr int64_t kDefault = 128, kMost = int64_t{1} << 20;
  const char* wanted = std::getenv("TOKENDETR_KEEP_MB");
  if (!kKeepsMemory) return 0;
  if (wanted == nullptr) return kDefault << 20;
  char* end = nullptr;
  const int64_t megabytes = std::strtoll(wanted, &end, 10);
  const bool is_number = end != wanted && *end == '\0' && megabytes >= 0;
  return (is_number ? std::min(megabytes, kMost) : kDefault) << 20;
}

// Blocks that wait to be used again, the latest last.
class Kept {
 public:
  // Never destroyed: tensors may outlive everything else.
  static Kept& all() {
    static Kept& kept = *new Kept;
    return kept;
  }

  // A block of at least `bytes` and not much more, or an empty one.
  Block take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      const bool fits = block->bytes >= bytes && block->bytes - bytes <= bytes / 4 + kHugePage;
      if (fits && (best == blocks_.end() || block->bytes <= best->bytes)) best = block;
    }
    if (best == blocks_.end()) return Block();
    Block found = std::move(*best);
    blocks_.erase(best);
    bytes_ -= found.bytes;
    return found;
  }

  void give(Block block) {
    std::vector<Block> dropped;  // freed without the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_ += block.bytes;
    blocks_.push_back(std::move(block));
    while (bytes_ > most_) {
      bytes_ -= blocks_.front().bytes;
      dropped.push_back(std::move(blocks_.front()));
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  const int64_t most_ = most_kept();
  std::mutex mutex_;
  std::vector<Block> blocks_;
  int64_t bytes_ = 0;
};

int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    default:
      return 4;
  }
}

void give_back(void* data, void* bytes) {
  Block block;
  block.memory.reset(data);
  block.bytes = reinterpret_cast<intptr_t>(bytes);
  Kept::all().give(std::move(block));
}

}  // namespace

Tensor result_tensor(Sizes sizes, const Tensor& like, ScalarType type) {
  const Strides strides(sizes);
  const int64_t bytes = strides.numbers * bytes_of(type);
  if (torch_from_blob == nullptr || bytes < kHugePage) return empty_tensor(sizes, like, type);
  Block block = Kept::all().take(bytes);
  if (block.memory == nullptr) block = allocated(bytes);
  const Place place = place_of(like);
  AtenTensorHandle made = nullptr;
  void* context = reinterpret_cast<void*>(static_cast<intptr_t>(block.bytes));
  TOKENDETR_CHECK(torch_from_blob(block.memory.get(), static_cast<int64_t>(sizes.size()), sizes.data(),
                                  strides.stride.data(), 0, number_of(type), place.type, place.index, &made,
                                  aoti_torch_layout_strided(), nullptr, 0, give_back, context) == TORCH_SUCCESS,
                  "no tensor of shape ", Shown{sizes}, " can be made");
  static_cast<void>(block.memory.release());
  return Tensor(made);
}

}  // namespace tokendetr
