// Host memory for small writes, so that the caller's memory is free again at once while the copy
// waits its turn in the device's queue.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>

namespace bitfabric {

// Bytes of the largest write that is copied at once, so that nobody waits for it.
constexpr size_t kStagedMost = size_t{64} << 10;

// A ring in two halves. One half fills while the queue empties the other; `Wait` is called before a
// half is used again, and must return when the commands issued before `Mark` are done.
template <typename Event>
class Staging {
 public:
  static constexpr size_t kHalf = size_t{512} << 10;

  // Returns a copy of the bytes, kStagedMost at most, that lasts until the commands enqueued next
  // have run.
  // `mark`: () → Event, after the commands so far; `wait`: (Event) → void, releases the event.
  template <typename Mark, typename Wait>
  const char* Copy(const void* from, size_t bytes, Mark mark, Wait wait) {
    if (memory_ == nullptr) memory_.reset(new char[2 * kHalf]);
    if (used_ + bytes > kHalf) {
      left_[half_] = mark();
      marked_[half_] = true;
      half_ = 1 - half_;
      if (marked_[half_]) {
        marked_[half_] = false;
        wait(left_[half_]);
      }
      used_ = 0;
    }
    char* to = memory_.get() + static_cast<size_t>(half_) * kHalf + used_;
    std::memcpy(to, from, bytes);
    used_ += (bytes + 63) / 64 * 64;
    return to;
  }

 private:
  std::unique_ptr<char[]> memory_;
  Event left_[2] = {};
  bool marked_[2] = {false, false};
  int half_ = 0;
  size_t used_ = 0;
};

}  // namespace bitfabric
