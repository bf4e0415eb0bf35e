// Buffers as kernels, copies and the host see them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "types.h"

namespace bitfabric {
namespace vulkan {

enum Access : uint8_t { kRead = 1, kWrite = 2 };

// What commands touched of a buffer since a barrier.
struct Touched {
  struct Range {
    size_t begin, end;
    uint8_t access;
  };
  uint64_t barrier = 0;  // since which one; of an earlier one, the ranges are of no interest
  std::vector<Range> ranges;
};

// A buffer with its memory, or a part of one. What a block's handle points to.
struct Region {
  Region* root = this;
  size_t offset = 0;  // in the root
  size_t size = 0;

  // Of a root alone. The last two groups belong to whoever holds the device's queue.
  VkBuffer buffer = 0;
  VkDeviceMemory memory = 0;
  VkDeviceAddress base = 0;  // 0 where the device has no addresses of buffers
  char* mapped = nullptr;    // null where the host does not see the memory

  uint64_t used = 0;     // the last batch of commands that touches it
  uint64_t written = 0;  // and the last that writes it
  Touched touched;

  VkDeviceAddress address() const { return root->base + offset; }
  char* host() const { return root->mapped == nullptr ? nullptr : root->mapped + offset; }
};

}  // namespace vulkan
}  // namespace bitfabric
