// Buffers with memory of their own, and the kinds of memory that they lie in.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "api.h"
#include "device_info.h"
#include "region.h"
#include "status.h"

namespace bitfabric {
namespace vulkan {

// What memory is for: kernels, bytes on their way to the device, bytes on their way back.
enum class MemoryUse { kKernels, kUpload, kDownload };

class Memory {
 public:
  // Chooses a type of memory for each use. `addresses`: whether kernels may ask for those of buffers.
  void Open(VkDevice device, const DeviceFunctions* functions, const DeviceInfo* info,
            bool addresses) {
    device_ = device;
    vk_ = functions;
    info_ = info;
    addresses_ = addresses && vk_->vkGetBufferDeviceAddress != nullptr;
    const uint32_t types = AllowedTypes();
    constexpr VkFlags kLocal = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
                      kSeen = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                              VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                      kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    const int local = FirstType(types, kLocal, 0);
    // Where the device's memory is the host's, kernels get such as the host can write in place,
    // unless that is but a window of it.
    int shared = info->integrated ? FirstType(types, kLocal | kSeen, 0) : -1;
    if (shared >= 0 && HeapOf(shared) < info->global_memory / 2) shared = -1;
    const int seen = FirstType(types, kSeen, 0);
    const int beside = FirstType(types, kSeen, kLocal);
    const int cached = FirstType(types, kSeen | kCached, 0);
    kernels_ = shared >= 0 ? shared : local >= 0 ? local : seen;
    upload_ = beside >= 0 ? beside : seen;
    download_ = cached >= 0 ? cached : upload_;
  }

  // Whether reading kernels' memory in place is as fast as any memory.
  bool read_in_place() const {
    return (FlagsOf(kernels_) & VK_MEMORY_PROPERTY_HOST_CACHED_BIT) != 0;
  }
  bool addresses() const { return addresses_; }

  // Returns a buffer with memory; null, and why in `result`, where there is none.
  Region* Create(size_t bytes, MemoryUse use, VkResult* result) {
    // Some are left for what the queue itself needs.
    const size_t spare = use == MemoryUse::kKernels ? kSpare : 0;
    if (bytes > info_->max_allocation ||
        (info_->max_allocations > spare && held_ + spare >= info_->max_allocations)) {
      *result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
      return nullptr;
    }
    auto* region = new Region();
    region->size = bytes;
    *result = Fill(region, use);
    if (*result == VK_SUCCESS) return region;
    Free(region);
    return nullptr;
  }

  // Ends a root once the device has finished the last batch that uses it.
  void FreeAfter(Region* region, uint64_t finished) {
    graves_.push_back(region);
    Bury(finished);
  }
  void Bury(uint64_t finished) {
    size_t left = 0;
    for (Region* region : graves_) {
      if (region->used <= finished) {
        Free(region);
      } else {
        graves_[left++] = region;
      }
    }
    graves_.resize(left);
  }
  bool has_graves() const { return !graves_.empty(); }

  // Gives a root's memory back and ends it.
  void Free(Region* region) {
    if (!Api::Retired()) {
      if (region->buffer != 0) vk_->vkDestroyBuffer(device_, region->buffer, nullptr);
      if (region->memory != 0) vk_->vkFreeMemory(device_, region->memory, nullptr);
    }
    if (region->memory != 0) --held_;
    delete region;
  }

 private:
  static constexpr size_t kSpare = 64;

  VkBufferCreateInfo BufferInfo(size_t bytes) const {
    VkBufferCreateInfo info;
    info.size = bytes;
    info.usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                 VK_BUFFER_USAGE_STORAGE_BUFFER_BIT;
    if (addresses_) info.usage |= VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
    return info;
  }

  VkResult Fill(Region* region, MemoryUse use) {
    const VkBufferCreateInfo info = BufferInfo(region->size);
    VkResult result = vk_->vkCreateBuffer(device_, &info, nullptr, &region->buffer);
    if (result != VK_SUCCESS) return result;
    VkMemoryRequirements needs;
    vk_->vkGetBufferMemoryRequirements(device_, region->buffer, &needs);
    VkMemoryAllocateFlagsInfo flags;
    flags.flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT;
    VkMemoryAllocateInfo allocate;
    if (addresses_) allocate.pNext = &flags;
    allocate.allocationSize = needs.size;
    const int type = TypeOf(use);
    allocate.memoryTypeIndex = static_cast<uint32_t>(type);
    result = vk_->vkAllocateMemory(device_, &allocate, nullptr, &region->memory);
    if (result != VK_SUCCESS) return result;
    ++held_;
    result = vk_->vkBindBufferMemory(device_, region->buffer, region->memory, 0);
    if (result != VK_SUCCESS) return result;
    if (addresses_) {
      VkBufferDeviceAddressInfo of;
      of.buffer = region->buffer;
      region->base = vk_->vkGetBufferDeviceAddress(device_, &of);
    }
    const bool in_place = use != MemoryUse::kKernels || info_->integrated;
    if (!in_place || (FlagsOf(type) & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT) == 0) return result;
    void* mapped = nullptr;
    result = vk_->vkMapMemory(device_, region->memory, 0, VK_WHOLE_SIZE, 0, &mapped);
    region->mapped = static_cast<char*>(mapped);
    return result;
  }

  // The types that a buffer may have, as bits.
  uint32_t AllowedTypes() const {
    const VkBufferCreateInfo info = BufferInfo(4096);
    VkBuffer probe = 0;
    Check(vk_->vkCreateBuffer(device_, &info, nullptr, &probe),
          [&] { return "vkCreateBuffer on " + info_->name; });
    VkMemoryRequirements needs;
    vk_->vkGetBufferMemoryRequirements(device_, probe, &needs);
    vk_->vkDestroyBuffer(device_, probe, nullptr);
    return needs.memoryTypeBits;
  }

  // The first type with all of some properties and none of others: drivers list the fastest first.
  int FirstType(uint32_t types, VkFlags with, VkFlags without) const {
    constexpr VkFlags kPlain = 0xF;  // protected and lazy memory are for others
    for (uint32_t i = 0; i < info_->memory.memoryTypeCount; ++i) {
      const VkFlags flags = FlagsOf(static_cast<int>(i));
      if ((types >> i & 1) != 0 && (flags & ~kPlain) == 0 && (flags & with) == with &&
          (flags & without) == 0)
        return static_cast<int>(i);
    }
    return -1;
  }

  int TypeOf(MemoryUse use) const {
    return use == MemoryUse::kKernels ? kernels_ : use == MemoryUse::kUpload ? upload_ : download_;
  }
  size_t HeapOf(int type) const {
    return info_->memory.memoryHeaps[info_->memory.memoryTypes[type].heapIndex].size;
  }
  VkFlags FlagsOf(int type) const { return info_->memory.memoryTypes[type].propertyFlags; }

  VkDevice device_ = nullptr;
  const DeviceFunctions* vk_ = nullptr;
  const DeviceInfo* info_ = nullptr;
  bool addresses_ = false;
  int kernels_ = 0, upload_ = 0, download_ = 0;
  std::atomic<size_t> held_{0};  // allocations
  std::vector<Region*> graves_;  // ended, with commands under way; for whoever holds the queue
};

}  // namespace vulkan
}  // namespace bitfabric
