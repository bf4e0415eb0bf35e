// What a device says of itself, asked once when the devices are listed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../device_facts.h"
#include "../json.h"
#include "features.h"

namespace bitfabric {
namespace vulkan {

// A product of small matrices that a subgroup computes: m × n += m × k · k × n.
struct MatrixShape {
  uint32_t m, n, k;
  std::array<std::string, 4> types;  // of a, b, c and the result: "f16", "s8", …
};

struct DeviceInfo : DeviceFacts {
  static constexpr VkEnum kNone = 2;  // VK_SHADER_FLOAT_CONTROLS_INDEPENDENCE_NONE
  uint32_t api = 0;  // the version that its code may use
  uint32_t vendor_id = 0, device_id = 0, driver_id = 0;
  std::array<uint8_t, 16> cache_id{};  // of what the driver compiles
  VkEnum type = 0;
  bool integrated = false;  // its memory is the host's
  bool integer_dot = false;
  std::vector<size_t> max_groups;
  size_t push_constants = 0, max_storage_range = 0, max_allocation = 0, max_allocations = 0;
  size_t max_bindings = 0;
  size_t subgroup_size = 0;
  float tick = 1;             // nanoseconds of a timestamp's unit
  uint32_t tick_bits = 0;     // of a timestamp; 0 where the queue has none
  uint32_t queue_family = 0;  // of the queue that takes everything
  bool usable = false;        // has what this backend can't do without
  VkPhysicalDeviceMemoryProperties memory{};
  std::vector<VkExtensionProperties> extensions;
  std::vector<std::string> features;
  std::vector<MatrixShape> matrices;

  explicit DeviceInfo(VkPhysicalDevice device) {
    const Api& vk = Api::Get();
    extensions = Listed<VkExtensionProperties>([&](uint32_t* count, VkExtensionProperties* items) {
      vk.vkEnumerateDeviceExtensionProperties(device, nullptr, count, items);
    });
    VkPhysicalDeviceProperties2 plain;
    vk.vkGetPhysicalDeviceProperties2(device, &plain);
    api = std::min(plain.properties.apiVersion, vk.version());
    if (api < kVersion11) return;
    features = SupportedFeatures(device, api, extensions);
    ReadProperties(device);
    ReadMemory(device);
    ReadQueues(device);
    ReadMatrices(device);
    usable = usable && Has("timelineSemaphore");
  }

  bool Has(const std::string& feature) const {
    return std::find(features.begin(), features.end(), feature) != features.end();
  }
  bool HasExtension(const char* name) const { return Lists(extensions, name); }
  bool processor() const { return type == VK_PHYSICAL_DEVICE_TYPE_CPU; }

  std::string Json(int index) const {
    JsonObject json;
    json.Number("index", static_cast<uint64_t>(index)).Text("name", name).Text("vendor", vendor);
    json.Text("version", driver).Text("driver", driver).Text("vulkan", version);
    json.Text("kind", processor() ? "cpu" : "gpu").Text("type", processor() ? "cpu" : "gpu");
    json.Flag("integrated", integrated).Flag("unified_memory", integrated);
    json.Number("global_memory", global_memory).Number("max_buffer", max_buffer);
    json.Number("max_threads", max_threads).Numbers("max_group_sizes", max_thread_dimensions);
    json.Numbers("max_groups", max_groups).Number("local_memory", local_memory);
    json.Number("push_constants", push_constants).Number("alignment", alignment);
    json.Number("subgroup_size", subgroup_size).Numbers("subgroup_sizes", subgroup_sizes);
    json.Flag("integer_dot", integer_dot).Texts("features", features);
    json.Raw("matrices", MatricesJson());
    return json.str();
  }

 private:
  void ReadProperties(VkPhysicalDevice device) {
    VkPhysicalDeviceProperties2 all;
    VkPhysicalDeviceSubgroupProperties subgroup;
    VkPhysicalDeviceMaintenance3Properties limits3;
    VkPhysicalDeviceMaintenance4Properties limits4;
    VkPhysicalDeviceDriverProperties drivers;
    VkPhysicalDeviceFloatControlsProperties floats;
    VkPhysicalDeviceSubgroupSizeControlProperties sizes;
    VkPhysicalDeviceShaderIntegerDotProductProperties dots;
    all.pNext = &subgroup;
    subgroup.pNext = &limits3;
    void** last = &limits3.pNext;
    auto add = [&](auto* next, uint32_t core, const char* extension) {
      if (api < core && !HasExtension(extension)) return;
      *last = next;
      last = &next->pNext;
    };
    add(&drivers, kVersion12, "VK_KHR_driver_properties");
    add(&floats, kVersion12, "VK_KHR_shader_float_controls");
    add(&sizes, kVersion13, "VK_EXT_subgroup_size_control");
    add(&dots, kVersion13, "VK_KHR_shader_integer_dot_product");
    add(&limits4, kVersion13, "VK_KHR_maintenance4");
    Api::Get().vkGetPhysicalDeviceProperties2(device, &all);

    const VkPhysicalDeviceProperties& found = all.properties;
    const VkPhysicalDeviceLimits& limits = found.limits;
    name = found.deviceName;
    vendor_id = found.vendorID;
    device_id = found.deviceID;
    driver_id = found.driverVersion;
    std::copy(found.pipelineCacheUUID, found.pipelineCacheUUID + 16, cache_id.begin());
    type = found.deviceType;
    vendor = VendorName(found.vendorID);
    version = VersionText(found.apiVersion);
    driver = drivers.driverName[0] != '\0'
                 ? std::string(drivers.driverName) + " " + drivers.driverInfo
                 : std::to_string(found.driverVersion);
    integrated = type == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU || processor();
    integer_dot = dots.integerDotProduct4x8BitPackedSignedAccelerated != 0;
    max_threads = limits.maxComputeWorkGroupInvocations;
    max_thread_dimensions.assign(limits.maxComputeWorkGroupSize,
                                 limits.maxComputeWorkGroupSize + 3);
    max_groups.assign(limits.maxComputeWorkGroupCount, limits.maxComputeWorkGroupCount + 3);
    local_memory = limits.maxComputeSharedMemorySize;
    push_constants = limits.maxPushConstantsSize;
    max_bindings = limits.maxPerStageDescriptorStorageBuffers;
    // Kernels read vectors of 16 bytes, whatever a descriptor would allow.
    alignment = std::max<size_t>(limits.minStorageBufferOffsetAlignment, 16);
    max_storage_range = limits.maxStorageBufferRange;
    max_allocations = limits.maxMemoryAllocationCount;
    max_allocation = limits3.maxMemoryAllocationSize;
    if (limits4.maxBufferSize != 0)
      max_allocation = std::min<size_t>(max_allocation, limits4.maxBufferSize);
    max_buffer = std::min(max_storage_range, max_allocation);
    tick = limits.timestampPeriod;
    ReadSubgroups(subgroup, sizes);
    // Only 16 bits are asked for, so what is done with the others must not depend on it.
    if (floats.denormBehaviorIndependence != kNone && floats.shaderDenormPreserve[0] != 0)
      features.emplace_back("float16Denormals");
  }

  void ReadSubgroups(const VkPhysicalDeviceSubgroupProperties& subgroup,
                     const VkPhysicalDeviceSubgroupSizeControlProperties& sizes) {
    subgroup_size = subgroup.subgroupSize;
    subgroup_sizes = {subgroup_size, subgroup_size};
    if (sizes.maxSubgroupSize != 0) subgroup_sizes = {sizes.minSubgroupSize, sizes.maxSubgroupSize};
    if ((subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) == 0) return;
    auto operation = [&](VkFlags bit, const char* feature) {
      if ((subgroup.supportedOperations & bit) != 0) features.emplace_back(feature);
    };
    operation(VK_SUBGROUP_FEATURE_ARITHMETIC_BIT, "subgroupArithmetic");
    operation(VK_SUBGROUP_FEATURE_BALLOT_BIT, "subgroupBallot");
    operation(VK_SUBGROUP_FEATURE_SHUFFLE_BIT, "subgroupShuffle");
  }

  // The memory of a device is the largest heap beside it.
  void ReadMemory(VkPhysicalDevice device) {
    Api::Get().vkGetPhysicalDeviceMemoryProperties(device, &memory);
    for (uint32_t i = 0; i < memory.memoryHeapCount; ++i) {
      const VkMemoryHeap& heap = memory.memoryHeaps[i];
      if ((heap.flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0)
        global_memory = std::max<size_t>(global_memory, heap.size);
    }
  }

  void ReadQueues(VkPhysicalDevice device) {
    const auto families = Listed<VkQueueFamilyProperties>(
        [&](uint32_t* count, VkQueueFamilyProperties* items) {
          Api::Get().vkGetPhysicalDeviceQueueFamilyProperties(device, count, items);
        });
    for (size_t i = 0; i < families.size() && !usable; ++i) {
      if ((families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) == 0) continue;
      queue_family = static_cast<uint32_t>(i);
      tick_bits = families[i].timestampValidBits;
      usable = true;
    }
  }

  void ReadMatrices(VkPhysicalDevice device) {
    auto* ask = Api::Get().vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR;
    if (ask == nullptr || !Has("cooperativeMatrix")) return;
    uint32_t count = 0;
    ask(device, &count, nullptr);
    std::vector<VkCooperativeMatrixPropertiesKHR> found(count);
    if (count != 0) ask(device, &count, found.data());
    for (const VkCooperativeMatrixPropertiesKHR& each : found) {
      if (each.scope != VK_SCOPE_SUBGROUP_KHR) continue;
      matrices.push_back({each.MSize, each.NSize, each.KSize,
                          {ComponentName(each.AType), ComponentName(each.BType),
                           ComponentName(each.CType), ComponentName(each.ResultType)}});
    }
  }

  std::string MatricesJson() const {
    std::string list;
    for (const MatrixShape& each : matrices) {
      list += (list.empty() ? "[" : ", [") + std::to_string(each.m) + ", " +
              std::to_string(each.n) + ", " + std::to_string(each.k);
      for (const std::string& component : each.types) list += ", " + JsonText(component);
      list += "]";
    }
    return "[" + list + "]";
  }

  // Of VkComponentTypeKHR; a number where it has none here.
  static std::string ComponentName(VkEnum type) {
    static const char* const kNames[] = {"f16", "f32", "f64", "s8",  "s16", "s32",
                                         "s64", "u8",  "u16", "u32", "u64"};
    if (type >= 0 && type < 11) return kNames[type];
    return type == 1000141000 ? "bf16" : std::to_string(type);
  }

  // Of a PCI vendor, or of one that Khronos gave a number.
  static std::string VendorName(uint32_t id) {
    struct Entry {
      uint32_t id;
      const char* name;
    };
    static const Entry kNames[] = {
        {0x1002, "AMD"},      {0x1010, "Imagination"}, {0x106B, "Apple"},   {0x10DE, "NVIDIA"},
        {0x13B5, "Arm"},      {0x14E4, "Broadcom"},    {0x144D, "Samsung"}, {0x1AE0, "Google"},
        {0x5143, "Qualcomm"}, {0x8086, "Intel"},       {0x10005, "Mesa"},
    };
    for (const Entry& entry : kNames)
      if (entry.id == id) return entry.name;
    return "vendor " + std::to_string(id);
  }

  static std::string VersionText(uint32_t version) {
    return std::to_string(version >> 22 & 127) + "." + std::to_string(version >> 12 & 1023) + "." +
           std::to_string(version & 4095);
  }
};

}  // namespace vulkan
}  // namespace bitfabric
