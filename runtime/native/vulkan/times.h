// Times that a device writes down while it works.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device.h"

namespace bitfabric {
namespace vulkan {

// Places for times, in the device's own units.
class Times {
 public:
  Times(Device* device, uint32_t count) : device_(device), count_(count) {
    const auto stay = device->inhabitants().Stay();
    VkQueryPoolCreateInfo info;
    info.queryType = VK_QUERY_TYPE_TIMESTAMP;
    info.queryCount = count;
    Check(device->functions().vkCreateQueryPool(device->handle(), &info, nullptr, &pool_),
          [&] { return "vkCreateQueryPool on " + device->Name(); });
    device->inhabitants().Enter();
  }
  ~Times() {
    device_->Settle();
    if (!Api::Retired())
      device_->functions().vkDestroyQueryPool(device_->handle(), pool_, nullptr);
    device_->inhabitants().Leave();
  }
  Times(const Times&) = delete;
  Times& operator=(const Times&) = delete;

  VkQueryPool pool() const { return pool_; }

  // The nanoseconds between each time and the next, once the device has written them all.
  std::vector<uint64_t> Differences() const {
    std::vector<uint64_t> ticks(count_);
    Check(device_->functions().vkGetQueryPoolResults(
              device_->handle(), pool_, 0, count_, count_ * sizeof(uint64_t), ticks.data(),
              sizeof(uint64_t), VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT),
          [&] { return "vkGetQueryPoolResults on " + device_->Name(); });
    const uint32_t bits = device_->info.tick_bits;
    const uint64_t mask = bits >= 64 ? UINT64_MAX : (uint64_t{1} << bits) - 1;
    std::vector<uint64_t> nanoseconds;
    for (size_t i = 1; i < ticks.size(); ++i) {
      const double difference = static_cast<double>((ticks[i] - ticks[i - 1]) & mask);
      nanoseconds.push_back(static_cast<uint64_t>(difference * device_->info.tick));
    }
    return nanoseconds;
  }

 private:
  Device* const device_;
  const uint32_t count_;
  VkQueryPool pool_ = 0;
};

}  // namespace vulkan
}  // namespace bitfabric
