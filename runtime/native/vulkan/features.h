// The optional features that kernels may need: which of them a device has, and enabling those.
//
// Each kernel names what it needs, and is refused before it is compiled where the device lacks it.
// A device is made with what the loaded modules need and the backend itself, no more: wanted.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "api.h"

namespace bitfabric {
namespace vulkan {

// A structure of features: its type, the extension that it came with, and the version of Vulkan
// that took it in.
struct FeatureGroup {
  static constexpr uint32_t kNever = UINT32_MAX;

  VkStructureType type;
  const char* extension;
  uint32_t core;
};

// One feature: its name, and its place in the structure of its group.
struct Feature {
  const char* name;
  VkStructureType group;
  size_t at;
};

inline const std::vector<FeatureGroup>& FeatureGroups() {
  static const std::vector<FeatureGroup> groups = {
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, "", kVersion11},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, "VK_KHR_16bit_storage",
       kVersion11},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES, "VK_KHR_8bit_storage", kVersion12},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES,
       "VK_KHR_shader_float16_int8", kVersion12},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES, "VK_KHR_timeline_semaphore",
       kVersion12},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES,
       "VK_KHR_buffer_device_address", kVersion12},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, "VK_KHR_vulkan_memory_model",
       kVersion12},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SCALAR_BLOCK_LAYOUT_FEATURES,
       "VK_EXT_scalar_block_layout", kVersion12},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SUBGROUP_EXTENDED_TYPES_FEATURES,
       "VK_KHR_shader_subgroup_extended_types", kVersion12},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES,
       "VK_EXT_subgroup_size_control", kVersion13},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES,
       "VK_KHR_shader_integer_dot_product", kVersion13},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_FEATURES, "VK_KHR_maintenance4", kVersion13},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_WORKGROUP_MEMORY_EXPLICIT_LAYOUT_FEATURES_KHR,
       "VK_KHR_workgroup_memory_explicit_layout", FeatureGroup::kNever},
      {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR,
       "VK_KHR_cooperative_matrix", FeatureGroup::kNever},
  };
  return groups;
}

inline const std::vector<Feature>& KnownFeatures() {
  static const std::vector<Feature> features = {
      {"shaderFloat64", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, 39},
      {"shaderInt64", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, 40},
      {"shaderInt16", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, 41},
      {"storageBuffer16BitAccess", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, 0},
      {"uniformAndStorageBuffer16BitAccess",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, 1},
      {"storagePushConstant16", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, 2},
      {"storageBuffer8BitAccess", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES, 0},
      {"uniformAndStorageBuffer8BitAccess",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES, 1},
      {"storagePushConstant8", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES, 2},
      {"shaderFloat16", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, 0},
      {"shaderInt8", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES, 1},
      {"timelineSemaphore", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES, 0},
      {"bufferDeviceAddress", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES, 0},
      {"vulkanMemoryModel", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, 0},
      {"vulkanMemoryModelDeviceScope",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES, 1},
      {"scalarBlockLayout", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SCALAR_BLOCK_LAYOUT_FEATURES, 0},
      {"shaderSubgroupExtendedTypes",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SUBGROUP_EXTENDED_TYPES_FEATURES, 0},
      {"subgroupSizeControl", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES, 0},
      {"computeFullSubgroups", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES, 1},
      {"shaderIntegerDotProduct",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES, 0},
      {"maintenance4", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_FEATURES, 0},
      {"workgroupMemoryExplicitLayout",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_WORKGROUP_MEMORY_EXPLICIT_LAYOUT_FEATURES_KHR, 0},
      {"workgroupMemoryExplicitLayout8BitAccess",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_WORKGROUP_MEMORY_EXPLICIT_LAYOUT_FEATURES_KHR, 2},
      {"workgroupMemoryExplicitLayout16BitAccess",
       VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_WORKGROUP_MEMORY_EXPLICIT_LAYOUT_FEATURES_KHR, 3},
      {"cooperativeMatrix", VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR, 0},
  };
  return features;
}

// The structures of a device's features, one after the other. All of them are a header and then
// truth values, of which the core's has the most, 55.
class FeatureChain {
 public:
  // With the structures that a device of a version and of some extensions knows; with `types`, of
  // those alone and the first.
  FeatureChain(uint32_t version, const std::vector<VkExtensionProperties>& extensions,
               const std::vector<VkStructureType>* types = nullptr) {
    for (const FeatureGroup& group : FeatureGroups()) {
      if (types != nullptr && group.type != VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2 &&
          std::find(types->begin(), types->end(), group.type) == types->end())
        continue;
      if (version < group.core) {
        if (!Lists(extensions, group.extension)) continue;
        extensions_.push_back(group.extension);
      }
      links_.push_back({group.type, nullptr, {}});
    }
    for (size_t i = 1; i < links_.size(); ++i) links_[i - 1].next = &links_[i];
  }
  FeatureChain(const FeatureChain&) = delete;
  FeatureChain& operator=(const FeatureChain&) = delete;

  // The first structure, VkPhysicalDeviceFeatures2.
  void* first() { return links_.data(); }
  // The extensions that the structures came with, where the version does not have them.
  const std::vector<const char*>& extensions() const { return extensions_; }

  // The value of a feature; null where its structure is not there.
  VkBool32* Find(const Feature& feature) {
    for (Link& link : links_)
      if (link.type == feature.group) return &link.values[feature.at];
    return nullptr;
  }

 private:
  struct Link {
    VkStructureType type;
    void* next;
    VkBool32 values[55];
  };

  std::vector<Link> links_;
  std::vector<const char*> extensions_;
};

// Returns the names of the known features that a device has.
inline std::vector<std::string> SupportedFeatures(
    VkPhysicalDevice device, uint32_t version,
    const std::vector<VkExtensionProperties>& extensions) {
  FeatureChain chain(version, extensions);
  Api::Get().vkGetPhysicalDeviceFeatures2(device, chain.first());
  std::vector<std::string> names;
  for (const Feature& feature : KnownFeatures()) {
    const VkBool32* const value = chain.Find(feature);
    if (value != nullptr && *value != 0) names.emplace_back(feature.name);
  }
  return names;
}

}  // namespace vulkan
}  // namespace bitfabric
