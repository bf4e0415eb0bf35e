// What goes into command buffers, and what launches take beside them: memory that the host fills,
// and descriptor sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "hazards.h"
#include "memory.h"

namespace bitfabric {
namespace vulkan {

// A kernel as a device runs it, for one size of its groups.
struct Pipeline {
  VkPipeline handle = 0;
  VkPipelineLayout layout = 0;
  VkDescriptorSetLayout set = 0;   // 0 where the kernel takes addresses
  std::vector<uint32_t> bindings;  // with a set: the binding of each buffer, in order
  uint32_t block_bytes = 0;        // of arguments
  bool spilled = false;            // the block lies in memory, and its address is pushed
  uint64_t made_on = 0;            // which of the device's logical devices
};

// A launch, ready to be recorded.
struct Launch {
  const Pipeline* pipeline;
  uint32_t groups[3];
  const unsigned char* block;  // of arguments
  VkDeviceAddress stored;      // where a spilled block lies
  const Use* uses;
  size_t use_count;
};

// Memory that the host writes and the device reads, given out from front to back.
class Scratch {
 public:
  explicit Scratch(Region* region) : region_(region) {}

  Region* region() const { return region_; }
  bool Fits(size_t bytes) const { return used_ + bytes <= region_->size; }
  void Reset() { used_ = 0; }

  // What bytes take with what is left free after them.
  static size_t Rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

  // Copies bytes in, which fit, and returns their place.
  size_t Place(const void* from, size_t bytes) {
    const size_t place = used_;
    std::memcpy(region_->mapped + place, from, bytes);
    used_ += Rounded(bytes);
    return place;
  }
  // The same, and returns their address.
  VkDeviceAddress Copy(const void* from, size_t bytes) {
    return region_->base + Place(from, bytes);
  }

 private:
  Region* region_;
  size_t used_ = 0;
};

// Descriptor sets, given out until all are taken back at once.
class Descriptors {
 public:
  void Open(VkDevice device, const DeviceFunctions* functions) {
    device_ = device;
    vk_ = functions;
  }

  VkDescriptorSet Take(VkDescriptorSetLayout layout, size_t buffers) {
    for (;; ++current_, sets_ = buffers_ = 0) {
      if (current_ == pools_.size()) Add();
      if (sets_ + 1 > kSets || buffers_ + buffers > kBuffers) continue;
      VkDescriptorSetAllocateInfo info;
      info.descriptorPool = pools_[current_];
      info.descriptorSetCount = 1;
      info.pSetLayouts = &layout;
      VkDescriptorSet set = 0;
      const VkResult result = vk_->vkAllocateDescriptorSets(device_, &info, &set);
      if (result == VK_SUCCESS) {
        ++sets_;
        buffers_ += buffers;
        return set;
      }
      if (result != VK_ERROR_OUT_OF_POOL_MEMORY && result != VK_ERROR_FRAGMENTED_POOL)
        RaiseResult(result, "vkAllocateDescriptorSets");
    }
  }

  void Reset() {
    for (size_t i = 0; i < pools_.size() && i <= current_; ++i)
      vk_->vkResetDescriptorPool(device_, pools_[i], 0);
    current_ = sets_ = buffers_ = 0;
  }
  void Destroy() {
    for (VkDescriptorPool pool : pools_) vk_->vkDestroyDescriptorPool(device_, pool, nullptr);
    pools_.clear();
  }

 private:
  static constexpr uint32_t kSets = 64, kBuffers = 512;  // of a pool

  void Add() {
    const VkDescriptorPoolSize size{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, kBuffers};
    VkDescriptorPoolCreateInfo info;
    info.maxSets = kSets;
    info.poolSizeCount = 1;
    info.pPoolSizes = &size;
    VkDescriptorPool pool = 0;
    Check(vk_->vkCreateDescriptorPool(device_, &info, nullptr, &pool),
          [] { return "vkCreateDescriptorPool"; });
    pools_.push_back(pool);
  }

  VkDevice device_ = nullptr;
  const DeviceFunctions* vk_ = nullptr;
  std::vector<VkDescriptorPool> pools_;
  size_t current_ = 0;
  size_t sets_ = 0, buffers_ = 0;  // taken from the current pool
};

// A command buffer that is being recorded.
class CommandList {
 public:
  CommandList() = default;
  CommandList(VkDevice device, const DeviceFunctions* functions, VkCommandBuffer buffer)
      : device_(device), vk_(functions), buffer_(buffer) {}

  VkCommandBuffer buffer() const { return buffer_; }

  VkResult Begin(VkFlags usage) const {
    VkCommandBufferBeginInfo info;
    info.flags = usage;
    return vk_->vkBeginCommandBuffer(buffer_, &info);
  }
  VkResult End() const { return vk_->vkEndCommandBuffer(buffer_); }

  // Orders all that was recorded or submitted before with all that comes later.
  void Barrier() const {
    constexpr VkFlags kStages =
        VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    VkMemoryBarrier barrier;
    barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    barrier.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                            VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    vk_->vkCmdPipelineBarrier(buffer_, kStages, kStages, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  }

  // Lets the host see what was written, once it has waited.
  void BarrierToHost() const {
    VkMemoryBarrier barrier;
    barrier.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    barrier.dstAccessMask = VK_ACCESS_HOST_READ_BIT;
    vk_->vkCmdPipelineBarrier(
        buffer_, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
        VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  }

  void Run(const Launch& launch, Descriptors* descriptors) {
    const Pipeline& pipeline = *launch.pipeline;
    if (pipeline.handle != bound_) {
      bound_ = pipeline.handle;
      vk_->vkCmdBindPipeline(buffer_, VK_PIPELINE_BIND_POINT_COMPUTE, bound_);
    }
    if (pipeline.spilled) {
      Push(pipeline, &launch.stored, sizeof launch.stored);
    } else if (pipeline.block_bytes != 0) {
      Push(pipeline, launch.block, pipeline.block_bytes);
    }
    if (pipeline.set != 0) Bind(launch, descriptors);
    vk_->vkCmdDispatch(buffer_, launch.groups[0], launch.groups[1], launch.groups[2]);
  }

  void Copy(const Region& from, size_t from_offset, const Region& to, size_t to_offset,
            size_t bytes) const {
    const VkBufferCopy part{from.offset + from_offset, to.offset + to_offset, bytes};
    vk_->vkCmdCopyBuffer(buffer_, from.root->buffer, to.root->buffer, 1, &part);
  }

  // Fills with zeros; place and length are multiples of four.
  void Clear(const Region& region, size_t offset, size_t bytes) const {
    vk_->vkCmdFillBuffer(buffer_, region.root->buffer, region.offset + offset, bytes, 0);
  }

  void ResetTimes(VkQueryPool pool, uint32_t count) const {
    vk_->vkCmdResetQueryPool(buffer_, pool, 0, count);
  }
  // Writes the time when all commands before it are done; those after it begin later.
  void Time(VkQueryPool pool, uint32_t at) const {
    Barrier();
    vk_->vkCmdWriteTimestamp(buffer_, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, pool, at);
  }

 private:
  void Push(const Pipeline& pipeline, const void* data, uint32_t bytes) const {
    vk_->vkCmdPushConstants(buffer_, pipeline.layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, bytes, data);
  }

  void Bind(const Launch& launch, Descriptors* descriptors) {
    const Pipeline& pipeline = *launch.pipeline;
    const VkDescriptorSet set = descriptors->Take(pipeline.set, launch.use_count);
    buffers_.resize(launch.use_count);
    writes_.assign(launch.use_count, VkWriteDescriptorSet());
    for (size_t i = 0; i < launch.use_count; ++i) {
      const Use& use = launch.uses[i];
      buffers_[i] = {use.region->root->buffer, use.begin(), use.bytes};
      writes_[i].dstSet = set;
      writes_[i].dstBinding = pipeline.bindings[i];
      writes_[i].descriptorCount = 1;
      writes_[i].descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
      writes_[i].pBufferInfo = &buffers_[i];
    }
    vk_->vkUpdateDescriptorSets(device_, static_cast<uint32_t>(writes_.size()), writes_.data(), 0,
                                nullptr);
    vk_->vkCmdBindDescriptorSets(buffer_, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.layout, 0, 1,
                                 &set, 0, nullptr);
  }

  VkDevice device_ = nullptr;
  const DeviceFunctions* vk_ = nullptr;
  VkCommandBuffer buffer_ = nullptr;
  VkPipeline bound_ = 0;
  std::vector<VkDescriptorBufferInfo> buffers_;
  std::vector<VkWriteDescriptorSet> writes_;
};

}  // namespace vulkan
}  // namespace bitfabric
