// Vulkan's functions: the loader's, taken from its library when first asked for, and a device's
// own, which come from its driver without the loader in between.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "../driver.h"
#include "types.h"

namespace bitfabric {
namespace vulkan {

// clang-format off
#define BITFABRIC_VK_INSTANCE_FUNCTIONS(X)                                                        \
  X(vkEnumeratePhysicalDevices, VkResult, VkInstance, uint32_t*, VkPhysicalDevice*)               \
  X(vkEnumerateDeviceExtensionProperties, VkResult, VkPhysicalDevice, const char*, uint32_t*,     \
    VkExtensionProperties*)                                                                       \
  X(vkGetPhysicalDeviceProperties2, void, VkPhysicalDevice, VkPhysicalDeviceProperties2*)         \
  X(vkGetPhysicalDeviceFeatures2, void, VkPhysicalDevice, void*)                                  \
  X(vkGetPhysicalDeviceMemoryProperties, void, VkPhysicalDevice,                                  \
    VkPhysicalDeviceMemoryProperties*)                                                            \
  X(vkGetPhysicalDeviceQueueFamilyProperties, void, VkPhysicalDevice, uint32_t*,                  \
    VkQueueFamilyProperties*)                                                                     \
  X(vkCreateDevice, VkResult, VkPhysicalDevice, const VkDeviceCreateInfo*, VkAllocator, VkDevice*) \
  X(vkGetDeviceProcAddr, VkFunction, VkDevice, const char*)

#define BITFABRIC_VK_DEVICE_FUNCTIONS(X)                                                          \
  X(vkGetDeviceQueue, void, VkDevice, uint32_t, uint32_t, VkQueue*)                               \
  X(vkQueueSubmit, VkResult, VkQueue, uint32_t, const VkSubmitInfo*, VkFence)                     \
  X(vkAllocateMemory, VkResult, VkDevice, const VkMemoryAllocateInfo*, VkAllocator,               \
    VkDeviceMemory*)                                                                              \
  X(vkFreeMemory, void, VkDevice, VkDeviceMemory, VkAllocator)                                    \
  X(vkMapMemory, VkResult, VkDevice, VkDeviceMemory, VkDeviceSize, VkDeviceSize, VkFlags, void**) \
  X(vkCreateBuffer, VkResult, VkDevice, const VkBufferCreateInfo*, VkAllocator, VkBuffer*)        \
  X(vkDestroyBuffer, void, VkDevice, VkBuffer, VkAllocator)                                       \
  X(vkGetBufferMemoryRequirements, void, VkDevice, VkBuffer, VkMemoryRequirements*)               \
  X(vkBindBufferMemory, VkResult, VkDevice, VkBuffer, VkDeviceMemory, VkDeviceSize)               \
  X(vkGetBufferDeviceAddress, VkDeviceAddress, VkDevice, const VkBufferDeviceAddressInfo*)        \
  X(vkCreateSemaphore, VkResult, VkDevice, const VkSemaphoreCreateInfo*, VkAllocator,             \
    VkSemaphore*)                                                                                 \
  X(vkDestroyDevice, void, VkDevice, VkAllocator)                                                 \
  X(vkDestroySemaphore, void, VkDevice, VkSemaphore, VkAllocator)                                 \
  X(vkGetSemaphoreCounterValue, VkResult, VkDevice, VkSemaphore, uint64_t*)                       \
  X(vkWaitSemaphores, VkResult, VkDevice, const VkSemaphoreWaitInfo*, uint64_t)                   \
  X(vkCreateCommandPool, VkResult, VkDevice, const VkCommandPoolCreateInfo*, VkAllocator,         \
    VkCommandPool*)                                                                               \
  X(vkDestroyCommandPool, void, VkDevice, VkCommandPool, VkAllocator)                             \
  X(vkResetCommandPool, VkResult, VkDevice, VkCommandPool, VkFlags)                               \
  X(vkAllocateCommandBuffers, VkResult, VkDevice, const VkCommandBufferAllocateInfo*,             \
    VkCommandBuffer*)                                                                             \
  X(vkBeginCommandBuffer, VkResult, VkCommandBuffer, const VkCommandBufferBeginInfo*)             \
  X(vkEndCommandBuffer, VkResult, VkCommandBuffer)                                                \
  X(vkCmdBindPipeline, void, VkCommandBuffer, VkEnum, VkPipeline)                                 \
  X(vkCmdPushConstants, void, VkCommandBuffer, VkPipelineLayout, VkFlags, uint32_t, uint32_t,     \
    const void*)                                                                                  \
  X(vkCmdBindDescriptorSets, void, VkCommandBuffer, VkEnum, VkPipelineLayout, uint32_t, uint32_t, \
    const VkDescriptorSet*, uint32_t, const uint32_t*)                                            \
  X(vkCmdDispatch, void, VkCommandBuffer, uint32_t, uint32_t, uint32_t)                           \
  X(vkCmdCopyBuffer, void, VkCommandBuffer, VkBuffer, VkBuffer, uint32_t, const VkBufferCopy*)    \
  X(vkCmdFillBuffer, void, VkCommandBuffer, VkBuffer, VkDeviceSize, VkDeviceSize, uint32_t)       \
  X(vkCmdPipelineBarrier, void, VkCommandBuffer, VkFlags, VkFlags, VkFlags, uint32_t,             \
    const VkMemoryBarrier*, uint32_t, const void*, uint32_t, const void*)                         \
  X(vkCmdResetQueryPool, void, VkCommandBuffer, VkQueryPool, uint32_t, uint32_t)                  \
  X(vkCmdWriteTimestamp, void, VkCommandBuffer, VkFlags, VkQueryPool, uint32_t)                   \
  X(vkCreateQueryPool, VkResult, VkDevice, const VkQueryPoolCreateInfo*, VkAllocator,             \
    VkQueryPool*)                                                                                 \
  X(vkDestroyQueryPool, void, VkDevice, VkQueryPool, VkAllocator)                                 \
  X(vkGetQueryPoolResults, VkResult, VkDevice, VkQueryPool, uint32_t, uint32_t, size_t, void*,    \
    VkDeviceSize, VkFlags)                                                                        \
  X(vkCreateShaderModule, VkResult, VkDevice, const VkShaderModuleCreateInfo*, VkAllocator,       \
    VkShaderModule*)                                                                              \
  X(vkDestroyShaderModule, void, VkDevice, VkShaderModule, VkAllocator)                           \
  X(vkCreatePipelineCache, VkResult, VkDevice, const VkPipelineCacheCreateInfo*, VkAllocator,     \
    VkPipelineCache*)                                                                             \
  X(vkDestroyPipelineCache, void, VkDevice, VkPipelineCache, VkAllocator)                         \
  X(vkGetPipelineCacheData, VkResult, VkDevice, VkPipelineCache, size_t*, void*)                  \
  X(vkCreatePipelineLayout, VkResult, VkDevice, const VkPipelineLayoutCreateInfo*, VkAllocator,   \
    VkPipelineLayout*)                                                                            \
  X(vkDestroyPipelineLayout, void, VkDevice, VkPipelineLayout, VkAllocator)                       \
  X(vkCreateComputePipelines, VkResult, VkDevice, VkPipelineCache, uint32_t,                      \
    const VkComputePipelineCreateInfo*, VkAllocator, VkPipeline*)                                 \
  X(vkDestroyPipeline, void, VkDevice, VkPipeline, VkAllocator)                                   \
  X(vkCreateDescriptorSetLayout, VkResult, VkDevice, const VkDescriptorSetLayoutCreateInfo*,      \
    VkAllocator, VkDescriptorSetLayout*)                                                          \
  X(vkDestroyDescriptorSetLayout, void, VkDevice, VkDescriptorSetLayout, VkAllocator)             \
  X(vkCreateDescriptorPool, VkResult, VkDevice, const VkDescriptorPoolCreateInfo*, VkAllocator,   \
    VkDescriptorPool*)                                                                            \
  X(vkDestroyDescriptorPool, void, VkDevice, VkDescriptorPool, VkAllocator)                       \
  X(vkResetDescriptorPool, VkResult, VkDevice, VkDescriptorPool, VkFlags)                         \
  X(vkAllocateDescriptorSets, VkResult, VkDevice, const VkDescriptorSetAllocateInfo*,             \
    VkDescriptorSet*)                                                                             \
  X(vkUpdateDescriptorSets, void, VkDevice, uint32_t, const VkWriteDescriptorSet*, uint32_t,      \
    const void*)
// clang-format on

#define BITFABRIC_VK_DECLARE(function, result, ...) \
  result(BITFABRIC_VK* function)(__VA_ARGS__) = nullptr;

// A list that the driver first counts and then writes: `ask`: (count*, items*) → void or VkResult.
template <typename T, typename Ask>
std::vector<T> Listed(Ask ask) {
  uint32_t count = 0;
  ask(&count, nullptr);
  std::vector<T> items(count);
  if (count != 0) ask(&count, items.data());
  items.resize(count);
  return items;
}

inline bool Lists(const std::vector<VkExtensionProperties>& extensions, const char* name) {
  for (const VkExtensionProperties& each : extensions)
    if (std::string(each.extensionName) == name) return true;
  return false;
}

// The loader and an instance, or why there is none.
class Api {
 public:
  BITFABRIC_VK_INSTANCE_FUNCTIONS(BITFABRIC_VK_DECLARE)
  // VK_KHR_cooperative_matrix; null where no driver has it.
  VkResult(BITFABRIC_VK* vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)(
      VkPhysicalDevice, uint32_t*, VkCooperativeMatrixPropertiesKHR*) = nullptr;

  // Never destroyed: tensors may be freed after the last static destructor has run.
  static const Api& Get() {
    static const Api* const api = new Api();
    return *api;
  }

  // Whether the process is ending. From then on nothing is given back: drivers tear themselves down
  // then, some before the last tensor is let go of, and the system takes all anyway.
  static std::atomic<bool>& Retired() {
    static std::atomic<bool> retired{false};
    return retired;
  }

  // Why there is no instance; empty where there is one.
  const std::string& missing() const { return missing_; }
  const std::string& library() const { return library_.name(); }
  VkInstance instance() const { return instance_; }
  // The highest version that the instance takes.
  uint32_t version() const { return version_; }

 private:
  using GetInstanceProcAddr = VkFunction(BITFABRIC_VK*)(VkInstance, const char*);

  Api()
      : library_("FABRIC_VULKAN_LIB",
                 {
#if defined(_WIN32)
                     "vulkan-1.dll",
#elif defined(__APPLE__)
                     "libvulkan.dylib", "libvulkan.1.dylib", "libMoltenVK.dylib",
                     "/opt/homebrew/lib/libvulkan.dylib", "/usr/local/lib/libvulkan.dylib",
                     "/opt/homebrew/lib/libMoltenVK.dylib", "/usr/local/lib/libMoltenVK.dylib",
#elif defined(__ANDROID__)
                     "libvulkan.so",
#else
                     "libvulkan.so.1", "libvulkan.so",
#endif
                 }) {
    if (!library_.found()) {
      missing_ = "no Vulkan loader could be opened; tried " + library_.tried() + ".";
      return;
    }
    find_ = reinterpret_cast<GetInstanceProcAddr>(library_.Find("vkGetInstanceProcAddr"));
    if (find_ == nullptr) {
      missing_ = library_.name() + " has no vkGetInstanceProcAddr: it is no Vulkan loader.";
      return;
    }
    if (CreateInstance()) LoadFunctions();
  }

  bool CreateInstance() {
    auto* create = Global<VkResult(BITFABRIC_VK*)(const VkInstanceCreateInfo*, VkAllocator,
                                                  VkInstance*)>("vkCreateInstance");
    auto* extensions = Global<VkResult(BITFABRIC_VK*)(const char*, uint32_t*,
                                                      VkExtensionProperties*)>(
        "vkEnumerateInstanceExtensionProperties");
    auto* version = Global<VkResult(BITFABRIC_VK*)(uint32_t*)>("vkEnumerateInstanceVersion");
    if (create == nullptr || extensions == nullptr || version == nullptr) return NeedsNewer();
    version(&version_);
    if (version_ < kVersion11) return NeedsNewer();
    if (version_ > kVersion13) version_ = kVersion13;
    VkApplicationInfo application;
    application.pApplicationName = application.pEngineName = "bitfabric";
    application.apiVersion = version_;
    VkInstanceCreateInfo info;
    info.pApplicationInfo = &application;
    // Drivers that are not conformant in all (MoltenVK) are listed only to those who ask.
    static const char* const kPortability = "VK_KHR_portability_enumeration";
    const auto found = Listed<VkExtensionProperties>(
        [&](uint32_t* count, VkExtensionProperties* items) { extensions(nullptr, count, items); });
    if (Lists(found, kPortability)) {
      info.flags = VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
      info.enabledExtensionCount = 1;
      info.ppEnabledExtensionNames = &kPortability;
    }
    const VkResult result = create(&info, nullptr, &instance_);
    if (result == VK_SUCCESS) return true;
    missing_ = "vkCreateInstance of " + library_.name() + " failed with " +
               std::to_string(result) + ": no driver is installed.";
    return false;
  }

  void LoadFunctions() {
#define BITFABRIC_VK_LOAD(function, result, ...)                                      \
  function = reinterpret_cast<decltype(function)>(find_(instance_, #function));       \
  if (function == nullptr) {                                                          \
    missing_ = library_.name() + " has no " #function ": Vulkan 1.1 is needed.";      \
    return;                                                                           \
  }
    BITFABRIC_VK_INSTANCE_FUNCTIONS(BITFABRIC_VK_LOAD)
#undef BITFABRIC_VK_LOAD
    vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR =
        reinterpret_cast<decltype(vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)>(
            find_(instance_, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
  }

  template <typename Function>
  Function Global(const char* name) const {
    return reinterpret_cast<Function>(find_(nullptr, name));
  }

  bool NeedsNewer() {
    missing_ = library_.name() + " is of Vulkan 1.0: Vulkan 1.1 is needed.";
    return false;
  }

  DriverLibrary library_;
  GetInstanceProcAddr find_ = nullptr;
  std::string missing_;
  VkInstance instance_ = nullptr;
  uint32_t version_ = 0;
};

// A device's functions.
class DeviceFunctions {
 public:
  BITFABRIC_VK_DEVICE_FUNCTIONS(BITFABRIC_VK_DECLARE)

  // Returns the name of one that the device does not have; null where it has all. Those of buffer
  // addresses may be missing.
  const char* Load(VkDevice device) {
    const Api& api = Api::Get();
#define BITFABRIC_VK_LOAD(function, result, ...)                                               \
  function = reinterpret_cast<decltype(function)>(api.vkGetDeviceProcAddr(device, #function)); \
  if (function == nullptr) /* older devices have it as an extension's */                       \
    function = reinterpret_cast<decltype(function)>(                                           \
        api.vkGetDeviceProcAddr(device, #function "KHR"));                                     \
  if (function == nullptr && std::string(#function) != "vkGetBufferDeviceAddress")             \
    return #function;
    BITFABRIC_VK_DEVICE_FUNCTIONS(BITFABRIC_VK_LOAD)
#undef BITFABRIC_VK_LOAD
    return nullptr;
  }
};

#undef BITFABRIC_VK_DECLARE

}  // namespace vulkan
}  // namespace bitfabric
