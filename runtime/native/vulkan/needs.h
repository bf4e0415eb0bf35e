// What a kernel needs of a device, found out before it is compiled: drivers take code that the
// device can't run, and then do anything.
#pragma once

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "container.h"
#include "device.h"

namespace bitfabric {
namespace vulkan {

// What a device lacks for a kernel, after "the device"; empty where it lacks nothing.
inline std::string Lacks(const DeviceInfo& info, const KernelCode& kernel) {
  auto version = [](uint32_t of) {
    return std::to_string(of >> 22 & 127) + "." + std::to_string(of >> 12 & 1023);
  };
  if (kernel.vulkan > info.api)
    return "has Vulkan " + version(info.api) + ", and it needs " + version(kernel.vulkan);
  for (const std::string& feature : kernel.features)
    if (!info.Has(feature)) return "does not have the feature " + feature + ", which it needs";
  const size_t pushed = kernel.spilled ? 8 : kernel.block_bytes;
  if (pushed > info.push_constants)
    return "has " + std::to_string(info.push_constants) +
           " bytes of push constants, and it needs " + std::to_string(pushed);
  if (kernel.shared_bytes > info.local_memory)
    return "has " + BytesText(info.local_memory) + " of shared memory, and it needs " +
           BytesText(kernel.shared_bytes);
  size_t buffers = 0;
  for (const KernelCode::Argument& argument : kernel.arguments) buffers += argument.buffer ? 1 : 0;
  if (kernel.descriptors && buffers > info.max_bindings)
    return "binds " + std::to_string(info.max_bindings) + " buffers, and it needs " +
           std::to_string(buffers);
  const size_t size = kernel.subgroup_size;
  if (size != 0 && (size < info.subgroup_sizes[0] || size > info.subgroup_sizes[1] ||
                    (info.subgroup_sizes[0] != info.subgroup_sizes[1] &&
                     !info.Has("subgroupSizeControl"))))
    return "can't run subgroups of " + std::to_string(size) + " threads, which it needs";
  return {};
}

inline void CheckNeeds(const Device& device, const KernelCode& kernel) {
  const std::string lacks = Lacks(device.info, kernel);
  if (lacks.empty()) return;
  Raise("Vulkan", Trouble::kError,
        "Kernel " + kernel.name + " can't run on " + device.Name() + ": the device " + lacks + ".");
}

// Raises where the device has what a module needs, but its logical device was made before the
// module came, and could not be replaced as something lives on it.
template <typename Codes>
void CheckEnabled(const Device& device, const std::string& kernel, const Codes& module) {
  const std::vector<std::string> enabled = device.enabled();
  std::set<std::string> missing;
  for (const auto& entry : module) {
    for (const std::string& name : FeaturesFor(device.info, entry.second.features))
      if (std::find(enabled.begin(), enabled.end(), name) == enabled.end()) missing.insert(name);
  }
  if (missing.empty()) return;
  std::string names;
  for (const std::string& name : missing) names += (names.empty() ? "" : ", ") + name;
  Raise("Vulkan", Trouble::kError,
        "Kernel " + kernel + " can't run on " + device.Name() +
            ": what lives there was put there before its module was loaded, which needs " + names +
            ". Load all modules first, or free what is on the device.");
}

}  // namespace vulkan
}  // namespace bitfabric
