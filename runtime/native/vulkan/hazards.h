// Which commands must wait for which: only those that touch what others touched, one of them
// writing.
//
// A barrier orders everything before it with everything after it, so what is kept of a buffer is
// the ranges that commands touched since the last one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "region.h"

namespace bitfabric {
namespace vulkan {

// A part of a buffer that a command touches.
struct Use {
  Region* region;
  size_t offset, bytes;  // in the region
  uint8_t access;

  size_t begin() const { return region->offset + offset; }
  size_t end() const { return begin() + bytes; }
};

class Hazards {
 public:
  // Whether a command with this use must come after a barrier.
  bool Conflicts(const Use& use) const {
    const Touched& touched = use.region->root->touched;
    if (touched.barrier != barrier_) return false;
    // A list that would grow without end is cut by a barrier, too.
    if (touched.ranges.size() >= kRangesMost) return true;
    for (const Touched::Range& range : touched.ranges)
      if (use.begin() < range.end && range.begin < use.end() &&
          ((use.access | range.access) & kWrite) != 0)
        return true;
    return false;
  }

  void Touch(const Use& use) const {
    Touched& touched = use.region->root->touched;
    if (touched.barrier != barrier_) {
      touched.barrier = barrier_;
      touched.ranges.clear();
    }
    for (Touched::Range& range : touched.ranges) {
      if (range.begin == use.begin() && range.end == use.end()) {
        range.access |= use.access;
        return;
      }
    }
    touched.ranges.push_back({use.begin(), use.end(), use.access});
  }

  // Everything so far is before a barrier.
  void Clear() { ++barrier_; }

 private:
  static constexpr size_t kRangesMost = 64;

  uint64_t barrier_ = 1;
};

}  // namespace vulkan
}  // namespace bitfabric
