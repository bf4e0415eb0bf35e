// The installed Vulkan driver, seen through a pane that the environment paints: calls that fail, a
// device with memory of its own, features and limits that are not there. What is not named here is
// the driver's.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "vulkan/types.h"

using namespace bitfabric::vulkan;

namespace {

using GetInstanceProcAddr = VkFunction (*)(VkInstance, const char*);
using GetDeviceProcAddr = VkFunction (*)(VkDevice, const char*);

VkInstance instance = nullptr;
VkDevice device = nullptr;

int Number(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? 0 : atoi(value);
}

GetInstanceProcAddr Loader() {
  static void* const library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
  return reinterpret_cast<GetInstanceProcAddr>(dlsym(library, "vkGetInstanceProcAddr"));
}

template <typename Function>
Function Real(const char* name) {
  VkFunction found = nullptr;
  if (device != nullptr) {
    auto get = reinterpret_cast<GetDeviceProcAddr>(Loader()(instance, "vkGetDeviceProcAddr"));
    found = get(device, name);
  }
  if (found == nullptr) found = Loader()(instance, name);
  return reinterpret_cast<Function>(found);
}
#define REAL(name) static const auto real = Real<decltype(&name)>(#name)

// Whether a fault has begun: at once, or once the file that FAULT_WHEN names is there. A process
// whose threads read the environment can't change it.
bool Begun() {
  const char* when = getenv("FAULT_WHEN");
  return when == nullptr || access(when, F_OK) == 0;
}

// FAULT_DISCRETE: memory 0 is the device's own and can't be mapped, memory 1 is the host's.
bool Discrete() { return Number("FAULT_DISCRETE") != 0; }

std::mutex mutex;
std::map<VkDeviceMemory, VkDeviceSize> device_memory;
VkDeviceSize held = 0;

VkResult vkCreateInstance(const VkInstanceCreateInfo* info, VkAllocator allocator,
                          VkInstance* made) {
  REAL(vkCreateInstance);
  const VkResult result = real(info, allocator, made);
  instance = *made;
  return result;
}

// Bytes of truth values in a structure of features, of those that the backend has.
size_t ValuesOf(VkStructureType type) {
  return type == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2 ? 55 : 4;
}

// FAULT_FEATURES: a file that gets "type:at" of each feature that a device is made with.
void LogFeatures(const VkDeviceCreateInfo* info) {
  const char* path = getenv("FAULT_FEATURES");
  FILE* const log = path == nullptr ? nullptr : fopen(path, "a");
  if (log == nullptr) return;
  for (auto* link = static_cast<const VkBaseStructure*>(info->pNext); link != nullptr;
       link = static_cast<const VkBaseStructure*>(link->pNext)) {
    for (size_t at = 0; at < ValuesOf(link->sType); ++at)
      if (reinterpret_cast<const VkBool32*>(link + 1)[at] != 0)
        fprintf(log, "%d:%zu\n", link->sType, at);
  }
  fclose(log);
}

VkResult vkCreateDevice(VkPhysicalDevice of, const VkDeviceCreateInfo* info, VkAllocator allocator,
                        VkDevice* made) {
  LogFeatures(info);
  REAL(vkCreateDevice);
  const VkResult result = real(of, info, allocator, made);
  device = *made;
  return result;
}

// FAULT_TWICE: the one device is listed twice.
VkResult vkEnumeratePhysicalDevices(VkInstance of, uint32_t* count, VkPhysicalDevice* devices) {
  REAL(vkEnumeratePhysicalDevices);
  if (Number("FAULT_TWICE") == 0) return real(of, count, devices);
  if (devices != nullptr) {
    uint32_t one = 1;
    real(of, &one, devices);
    devices[1] = devices[0];
  }
  *count = 2;
  return VK_SUCCESS;
}

// FAULT_GROUPS, FAULT_RANGE, FAULT_ALLOCATIONS, FAULT_VERSION: a limit's value.
void vkGetPhysicalDeviceProperties2(VkPhysicalDevice of, VkPhysicalDeviceProperties2* properties) {
  REAL(vkGetPhysicalDeviceProperties2);
  real(of, properties);
  VkPhysicalDeviceLimits& limits = properties->properties.limits;
  if (Discrete()) properties->properties.deviceType = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
  if (const int most = Number("FAULT_GROUPS"))
    for (uint32_t& count : limits.maxComputeWorkGroupCount) count = static_cast<uint32_t>(most);
  if (const int most = Number("FAULT_RANGE"))
    limits.maxStorageBufferRange = static_cast<uint32_t>(most);
  if (const int most = Number("FAULT_ALLOCATIONS"))
    limits.maxMemoryAllocationCount = static_cast<uint32_t>(most);
  if (const int minor = Number("FAULT_VERSION"))
    properties->properties.apiVersion = MakeVersion(1, static_cast<uint32_t>(minor));
}

// FAULT_HIDE: "type:at", a structure's number and the place of a feature in it.
void vkGetPhysicalDeviceFeatures2(VkPhysicalDevice of, void* features) {
  REAL(vkGetPhysicalDeviceFeatures2);
  real(of, features);
  const char* hidden = getenv("FAULT_HIDE");
  int type = 0, at = 0;
  if (hidden == nullptr || sscanf(hidden, "%d:%d", &type, &at) != 2) return;
  for (auto* link = static_cast<VkBaseStructure*>(features); link != nullptr;
       link = static_cast<VkBaseStructure*>(link->pNext))
    if (link->sType == type) reinterpret_cast<VkBool32*>(link + 1)[at] = 0;
}

void vkGetPhysicalDeviceMemoryProperties(VkPhysicalDevice of,
                                         VkPhysicalDeviceMemoryProperties* properties) {
  REAL(vkGetPhysicalDeviceMemoryProperties);
  real(of, properties);
  if (!Discrete()) return;
  properties->memoryTypeCount = properties->memoryHeapCount = 2;
  properties->memoryTypes[0] = {VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0};
  properties->memoryTypes[1] = {VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                    VK_MEMORY_PROPERTY_HOST_COHERENT_BIT |
                                    VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
                                1};
  properties->memoryHeaps[1] = {properties->memoryHeaps[0].size, 0};
}

void vkGetBufferMemoryRequirements(VkDevice of, VkBuffer buffer, VkMemoryRequirements* needs) {
  REAL(vkGetBufferMemoryRequirements);
  real(of, buffer, needs);
  if (Discrete()) needs->memoryTypeBits = 3;
}

// FAULT_MEMORY: so many bytes are there; an allocation beyond them fails.
VkResult vkAllocateMemory(VkDevice of, const VkMemoryAllocateInfo* info, VkAllocator allocator,
                          VkDeviceMemory* memory) {
  REAL(vkAllocateMemory);
  std::lock_guard<std::mutex> lock(mutex);
  const bool own = !Discrete() || info->memoryTypeIndex == 0;
  const int most = Number("FAULT_MEMORY");
  if (most != 0 && own && held + info->allocationSize > static_cast<VkDeviceSize>(most))
    return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  VkMemoryAllocateInfo plain = *info;
  plain.memoryTypeIndex = 0;  // the driver's only one
  const VkResult result = real(of, &plain, allocator, memory);
  if (result == VK_SUCCESS && own) {
    device_memory[*memory] = info->allocationSize;
    held += info->allocationSize;
  }
  return result;
}

void vkFreeMemory(VkDevice of, VkDeviceMemory memory, VkAllocator allocator) {
  REAL(vkFreeMemory);
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = device_memory.find(memory);
    if (found != device_memory.end()) {
      held -= found->second;
      device_memory.erase(found);
    }
  }
  real(of, memory, allocator);
}

VkResult vkMapMemory(VkDevice of, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize bytes,
                     VkFlags flags, void** mapped) {
  REAL(vkMapMemory);
  std::lock_guard<std::mutex> lock(mutex);
  if (Discrete() && device_memory.count(memory) != 0) return -5;  // VK_ERROR_MEMORY_MAP_FAILED
  return real(of, memory, offset, bytes, flags, mapped);
}

// FAULT_SUBMIT: submissions fail with this result, the first FAULT_SUBMIT_AFTER excepted.
// FAULT_SUBMIT_ONCE: only the first fails.
VkResult vkQueueSubmit(VkQueue queue, uint32_t count, const VkSubmitInfo* infos, VkFence fence) {
  REAL(vkQueueSubmit);
  static std::atomic<int> submissions{0};
  if (Begun()) {
    const int before = submissions++;
    if (Number("FAULT_SUBMIT") != 0 && before >= Number("FAULT_SUBMIT_AFTER"))
      return Number("FAULT_SUBMIT");
    if (Number("FAULT_SUBMIT_ONCE") != 0 && before == 0) return Number("FAULT_SUBMIT_ONCE");
  }
  return real(queue, count, infos, fence);
}

// FAULT_WAIT: waiting fails with this result.
VkResult vkWaitSemaphores(VkDevice of, const VkSemaphoreWaitInfo* info, uint64_t nanoseconds) {
  REAL(vkWaitSemaphores);
  if (Number("FAULT_WAIT") != 0 && Begun()) return Number("FAULT_WAIT");
  return real(of, info, nanoseconds);
}

// FAULT_COMMANDS: a file that gets a word for each command of these kinds that is recorded.
void LogCommand(const char* word) {
  const char* path = getenv("FAULT_COMMANDS");
  if (path == nullptr) return;
  std::lock_guard<std::mutex> lock(mutex);
  if (FILE* const log = fopen(path, "a")) {
    fprintf(log, "%s\n", word);
    fclose(log);
  }
}

void vkCmdDispatch(VkCommandBuffer buffer, uint32_t x, uint32_t y, uint32_t z) {
  REAL(vkCmdDispatch);
  LogCommand("dispatch");
  real(buffer, x, y, z);
}

void vkCmdCopyBuffer(VkCommandBuffer buffer, VkBuffer from, VkBuffer to, uint32_t count,
                     const VkBufferCopy* parts) {
  REAL(vkCmdCopyBuffer);
  LogCommand("copy");
  real(buffer, from, to, count, parts);
}

void vkCmdPipelineBarrier(VkCommandBuffer buffer, VkFlags before, VkFlags after, VkFlags flags,
                          uint32_t memories, const VkMemoryBarrier* memory, uint32_t buffers,
                          const void* of_buffers, uint32_t images, const void* of_images) {
  REAL(vkCmdPipelineBarrier);
  LogCommand(after == VK_PIPELINE_STAGE_HOST_BIT ? "host" : "barrier");
  real(buffer, before, after, flags, memories, memory, buffers, of_buffers, images, of_images);
}

VkFunction vkGetDeviceProcAddr(VkDevice of, const char* name);

VkFunction Painted(const char* name) {
#define PAINTED(function) \
  if (strcmp(name, #function) == 0) return reinterpret_cast<VkFunction>(&function)
  PAINTED(vkCreateInstance);
  PAINTED(vkCreateDevice);
  PAINTED(vkEnumeratePhysicalDevices);
  PAINTED(vkGetDeviceProcAddr);
  PAINTED(vkGetPhysicalDeviceProperties2);
  PAINTED(vkGetPhysicalDeviceFeatures2);
  PAINTED(vkGetPhysicalDeviceMemoryProperties);
  PAINTED(vkGetBufferMemoryRequirements);
  PAINTED(vkAllocateMemory);
  PAINTED(vkFreeMemory);
  PAINTED(vkMapMemory);
  PAINTED(vkQueueSubmit);
  PAINTED(vkWaitSemaphores);
  PAINTED(vkCmdDispatch);
  PAINTED(vkCmdCopyBuffer);
  PAINTED(vkCmdPipelineBarrier);
  return nullptr;
}

VkFunction vkGetDeviceProcAddr(VkDevice of, const char* name) {
  REAL(vkGetDeviceProcAddr);
  const VkFunction painted = Painted(name);
  return painted != nullptr ? painted : real(of, name);
}

}  // namespace

extern "C" VkFunction vkGetInstanceProcAddr(VkInstance of, const char* name) {
  const VkFunction painted = Painted(name);
  return painted != nullptr ? painted : Loader()(of, name);
}
