// All devices of all Vulkan drivers, in an order that stays.
#pragma once

#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "../device_list.h"
#include "device.h"

namespace bitfabric {
namespace vulkan {

class Devices final : public DeviceList<Device> {
 public:
  // Never destroyed: tensors may be freed after the last static destructor has run.
  static Devices& Get() {
    static Devices* const devices = new Devices();
    return *devices;
  }

 private:
  // Graphics processors come first, in the loader's order: discrete ones, integrated ones, others.
  // A processor that plays the device comes last.
  Devices() : DeviceList("Vulkan") {
    missing_ = Api::Get().missing();
    if (!missing_.empty()) return;
    // Registered after what the drivers registered when they were loaded, so it runs before that.
    std::atexit([] { Api::Retired() = true; });
    const auto found = Listed<VkPhysicalDevice>([](uint32_t* count, VkPhysicalDevice* items) {
      Api::Get().vkEnumeratePhysicalDevices(Api::Get().instance(), count, items);
    });
    std::vector<std::pair<VkPhysicalDevice, DeviceInfo>> by_rank[4];
    for (VkPhysicalDevice device : found) {
      DeviceInfo info(device);
      if (info.usable) by_rank[Rank(info.type)].emplace_back(device, std::move(info));
    }
    for (auto& rank : by_rank)
      for (auto& [device, info] : rank)
        devices_.push_back(std::make_unique<Device>(static_cast<int>(devices_.size()), device,
                                                    std::move(info)));
    if (devices_.empty())
      missing_ = found.empty() ? "the Vulkan loader " + Api::Get().library() +
                                     " lists no device: no driver is installed."
                               : "no Vulkan device has version 1.1, a queue for kernels and "
                                 "timeline semaphores.";
  }

  static size_t Rank(VkEnum type) {
    switch (type) {
      case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return 0;
      case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return 1;
      case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return 3;
      default:
        return 2;
    }
  }
};

}  // namespace vulkan
}  // namespace bitfabric
