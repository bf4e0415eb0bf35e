// Vulkan's results: their names, what kind of failure each is, and how it is raised.
#pragma once

#include <string>

#include "../errors.h"
#include "types.h"

namespace bitfabric {
namespace vulkan {

inline std::string ResultName(VkResult result) {
  struct Entry {
    VkResult result;
    const char* name;
  };
  static const Entry kNames[] = {
      {1, "VK_NOT_READY"},
      {2, "VK_TIMEOUT"},
      {5, "VK_INCOMPLETE"},
      {-1, "VK_ERROR_OUT_OF_HOST_MEMORY"},
      {-2, "VK_ERROR_OUT_OF_DEVICE_MEMORY"},
      {-3, "VK_ERROR_INITIALIZATION_FAILED"},
      {-4, "VK_ERROR_DEVICE_LOST"},
      {-5, "VK_ERROR_MEMORY_MAP_FAILED"},
      {-6, "VK_ERROR_LAYER_NOT_PRESENT"},
      {-7, "VK_ERROR_EXTENSION_NOT_PRESENT"},
      {-8, "VK_ERROR_FEATURE_NOT_PRESENT"},
      {-9, "VK_ERROR_INCOMPATIBLE_DRIVER"},
      {-10, "VK_ERROR_TOO_MANY_OBJECTS"},
      {-12, "VK_ERROR_FRAGMENTED_POOL"},
      {-13, "VK_ERROR_UNKNOWN"},
      {-1000012000, "VK_ERROR_INVALID_SHADER_NV"},
      {-1000069000, "VK_ERROR_OUT_OF_POOL_MEMORY"},
      {-1000161000, "VK_ERROR_FRAGMENTATION"},
      {-1000257000, "VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS"},
  };
  for (const Entry& entry : kNames)
    if (entry.result == result) return entry.name;
  return "Vulkan error";
}

inline bool IsOutOfMemory(VkResult result) {
  return result == VK_ERROR_OUT_OF_HOST_MEMORY || result == VK_ERROR_OUT_OF_DEVICE_MEMORY ||
         result == VK_ERROR_TOO_MANY_OBJECTS || result == VK_ERROR_OUT_OF_POOL_MEMORY ||
         result == VK_ERROR_FRAGMENTED_POOL;
}

// Raises a failed call as a sentence: "Vulkan out of memory: vkX for … failed with VK_Y (-2)."
[[noreturn]] inline void RaiseResult(VkResult result, const std::string& what) {
  const Trouble trouble = result == VK_ERROR_DEVICE_LOST ? Trouble::kDeviceLost
                          : IsOutOfMemory(result)        ? Trouble::kOutOfMemory
                                                         : Trouble::kError;
  Raise("Vulkan", trouble,
        what + " failed with " + ResultName(result) + " (" + std::to_string(result) + ").");
}

// `text`: () → what was asked for.
template <typename Text>
void Check(VkResult result, Text text) {
  if (result != VK_SUCCESS) RaiseResult(result, text());
}

}  // namespace vulkan
}  // namespace bitfabric
