// The logical device through which a physical one is used.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "device_info.h"
#include "status.h"

namespace bitfabric {
namespace vulkan {

// What the backend itself needs of every device.
inline const char* const kOwnFeature = "timelineSemaphore";

// Returns the features that a device is made with, of those that are wanted: what it has.
inline std::vector<std::string> FeaturesFor(const DeviceInfo& info,
                                            const std::vector<std::string>& wanted) {
  std::vector<std::string> names;
  for (const Feature& feature : KnownFeatures()) {
    const bool asked = feature.name == std::string(kOwnFeature) ||
                       std::find(wanted.begin(), wanted.end(), feature.name) != wanted.end();
    if (asked && info.Has(feature.name)) names.emplace_back(feature.name);
  }
  return names;
}

// Makes one with a queue and with some of the features that the device has, and loads its
// functions. `name`: of the device, for errors.
inline VkDevice MakeLogicalDevice(VkPhysicalDevice device, const DeviceInfo& info,
                                  const std::vector<std::string>& features,
                                  const std::string& name, DeviceFunctions* functions) {
  std::vector<VkStructureType> groups;
  for (const Feature& feature : KnownFeatures())
    if (std::find(features.begin(), features.end(), feature.name) != features.end())
      groups.push_back(feature.group);
  FeatureChain chain(info.api, info.extensions, &groups);
  for (const Feature& feature : KnownFeatures())
    if (std::find(features.begin(), features.end(), feature.name) != features.end())
      *chain.Find(feature) = 1;
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
