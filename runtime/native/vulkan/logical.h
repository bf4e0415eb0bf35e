// The logical device through which a physical one is used.
#pragma once

#include <string>
#include <vector>

#include "device_info.h"
#include "status.h"

namespace bitfabric {
namespace vulkan {

// Makes one with a queue and with all known features that the device has (features.h says why), and
// loads its functions. `name`: of the device, for errors.
inline VkDevice MakeLogicalDevice(VkPhysicalDevice device, const DeviceInfo& info,
                                  const std::string& name, DeviceFunctions* functions) {
  FeatureChain chain(info.api, info.extensions);
  for (const Feature& feature : KnownFeatures())
    if (info.Has(feature.name)) *chain.Find(feature) = 1;
  std::vector<const char*> extensions = chain.extensions();
  // A device that is not conformant in all has this, and whoever uses it must say so.
  static const char* const kSubset = "VK_KHR_portability_subset";
  if (info.HasExtension(kSubset)) extensions.push_back(kSubset);
  const float priority = 1;
  VkDeviceQueueCreateInfo queue;
  queue.queueFamilyIndex = info.queue_family;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  VkDeviceCreateInfo create;
  create.pNext = chain.first();
  create.queueCreateInfoCount = 1;
  create.pQueueCreateInfos = &queue;
  create.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  create.ppEnabledExtensionNames = extensions.data();
  VkDevice made = nullptr;
  Check(Api::Get().vkCreateDevice(device, &create, nullptr, &made),
        [&] { return "vkCreateDevice on " + name; });
  if (const char* missing = functions->Load(made))
    Raise("Vulkan", Trouble::kError, name + " has no " + missing + ".");
  return made;
}

}  // namespace vulkan
}  // namespace bitfabric
