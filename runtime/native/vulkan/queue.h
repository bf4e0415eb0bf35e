// A device's queue: commands are gathered into batches, and a batch is handed over at once.
//
// Handing over costs as much as recording many commands, so it is done when a batch is full, when
// somebody waits, or when the device has nothing left to do. The batches are a ring: each has its
// command pool, its memory for what the host passes along, and its descriptor sets, and is used
// again once the device has passed its number on the timeline. So the host can't run away from the
// device without bound, either.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"

namespace bitfabric {
namespace vulkan {

class Queue {
 public:
  static constexpr size_t kScratch = size_t{1} << 20;  // bytes of a batch

  void Open(VkDevice device, const DeviceFunctions* functions, Memory* memory,
            const DeviceInfo& info) {
    device_ = device;
    vk_ = functions;
    memory_ = memory;
    name_ = info.name;
    family_ = info.queue_family;
    vk_->vkGetDeviceQueue(device_, family_, 0, &queue_);
    VkSemaphoreTypeCreateInfo type;
    type.semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE;
    type.initialValue = submitted();
    VkSemaphoreCreateInfo create;
    create.pNext = &type;
    Made(vk_->vkCreateSemaphore(device_, &create, nullptr, &timeline_), "vkCreateSemaphore");
    to_host_pool_ = NewPool(0);
    const CommandList to_host(device_, vk_, NewBuffer(to_host_pool_));
    Made(to_host.Begin(VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT), "vkBeginCommandBuffer");
    to_host.BarrierToHost();
    Made(to_host.End(), "vkEndCommandBuffer");
    to_host_ = to_host.buffer();
  }

  // Gives back what it has on the device, which has nothing left to do. Batches are counted on.
  void Close() {
    for (Batch& batch : batches_) {
      batch.descriptors.Destroy();
      if (batch.scratch != nullptr) memory_->Free(batch.scratch->region());
      if (batch.pool != 0) vk_->vkDestroyCommandPool(device_, batch.pool, nullptr);
      batch = Batch();
    }
    if (to_host_pool_ != 0) vk_->vkDestroyCommandPool(device_, to_host_pool_, nullptr);
    if (timeline_ != 0) vk_->vkDestroySemaphore(device_, timeline_, nullptr);
    to_host_pool_ = timeline_ = 0;
    open_ = nullptr;
    Finished(submitted());
  }

  // All but the last three are for whoever holds the device's lock.

  // The number of the batch that the next command goes into.
  uint64_t number() const { return submitted_.load(std::memory_order_relaxed) + 1; }

  // The list that the next command goes into.
  CommandList* List() {
    Batch* const batch = Gathering();
    if (!batch->recording) {
      if (batch->begun == batch->buffers.size()) batch->buffers.push_back(NewBuffer(batch->pool));
      batch->list = CommandList(device_, vk_, batch->buffers[batch->begun]);
      Made(batch->list.Begin(VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT), "vkBeginCommandBuffer");
      batch->order.push_back(batch->list.buffer());
      batch->recording = true;
      ++batch->begun;
    }
    return &batch->list;
  }

  // Appends a command buffer that is recorded already.
  VkResult Append(VkCommandBuffer recorded) {
    Batch* const batch = Gathering();
    const VkResult result = EndList(batch);
    if (result == VK_SUCCESS) batch->order.push_back(recorded);
    return result;
  }

  // Room for bytes that go along with the next command, kScratch at most; null where the batch
  // must be submitted first.
  vulkan::Scratch* Scratch(size_t bytes) {
    Batch* const batch = Gathering();
    if (batch->scratch == nullptr) {
      VkResult result = VK_SUCCESS;
      Region* const region = memory_->Create(kScratch, MemoryUse::kUpload, &result);
      Made(result, "Allocating memory for transfers");
      batch->scratch = std::make_unique<vulkan::Scratch>(region);
    }
    return batch->scratch->Fits(bytes) ? batch->scratch.get() : nullptr;
  }
  vulkan::Descriptors* Descriptors() { return &Gathering()->descriptors; }

  // Counts commands, and submits when it is time.
  VkResult Count(size_t commands) {
    const size_t before = open_->commands;
    open_->commands += commands;
    if (open_->commands >= kFull) return Submit();
    if (before / kEager == open_->commands / kEager) return VK_SUCCESS;
    Look();
    return finished() >= submitted() ? Submit() : VK_SUCCESS;
  }

  // Hands over what was gathered. Where that fails for want of memory it can be tried again.
  VkResult Submit() {
    if (open_ == nullptr || open_->order.empty()) return VK_SUCCESS;
    VkResult result = EndList(open_);
    if (result != VK_SUCCESS) return result;
    if (open_->order.back() != to_host_) open_->order.push_back(to_host_);
    const uint64_t number = open_->number;
    VkTimelineSemaphoreSubmitInfo values;
    values.signalSemaphoreValueCount = 1;
    values.pSignalSemaphoreValues = &number;
    VkSubmitInfo info;
    info.pNext = &values;
    info.commandBufferCount = static_cast<uint32_t>(open_->order.size());
    info.pCommandBuffers = open_->order.data();
    info.signalSemaphoreCount = 1;
    info.pSignalSemaphores = &timeline_;
    result = vk_->vkQueueSubmit(queue_, 1, &info, 0);
    if (result != VK_SUCCESS) return result;
    submitted_.store(number, std::memory_order_release);
    open_ = nullptr;
    return result;
  }

  // Forgets what was gathered.
  void Drop() {
    if (open_ != nullptr) open_->number = 0;
    open_ = nullptr;
  }

  // The last batch that was handed over, and the last that is known to be done.
  uint64_t submitted() const { return submitted_.load(std::memory_order_acquire); }
  uint64_t finished() const { return finished_.load(std::memory_order_acquire); }

  // Asks the device how far it is.
  void Look() {
    uint64_t value = 0;
    if (vk_->vkGetSemaphoreCounterValue(device_, timeline_, &value) == VK_SUCCESS) Finished(value);
  }

  // Waits for a batch that was handed over.
  VkResult Wait(uint64_t number) {
    if (finished() >= number) return VK_SUCCESS;
    VkSemaphoreWaitInfo info;
    info.semaphoreCount = 1;
    info.pSemaphores = &timeline_;
    info.pValues = &number;
    const VkResult result = vk_->vkWaitSemaphores(device_, &info, UINT64_MAX);
    if (result == VK_SUCCESS) Finished(number);
    return result;
  }

  VkCommandPool NewPool(VkFlags flags) {
    VkCommandPoolCreateInfo info;
    info.flags = flags;
    info.queueFamilyIndex = family_;
    VkCommandPool pool = 0;
    Made(vk_->vkCreateCommandPool(device_, &info, nullptr, &pool), "vkCreateCommandPool");
    return pool;
  }
  VkCommandBuffer NewBuffer(VkCommandPool pool) {
    VkCommandBufferAllocateInfo info;
    info.commandPool = pool;
    info.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
    info.commandBufferCount = 1;
    VkCommandBuffer buffer = nullptr;
    Made(vk_->vkAllocateCommandBuffers(device_, &info, &buffer), "vkAllocateCommandBuffers");
    return buffer;
  }

 private:
  static constexpr size_t kBatches = 8;
  static constexpr size_t kFull = 128;  // commands of a batch
  static constexpr size_t kEager = 16;  // after how many it is asked whether the device is idle

  struct Batch {
    uint64_t number = 0;  // on the timeline; 0 where nothing of it was handed over
    VkCommandPool pool = 0;
    std::vector<VkCommandBuffer> buffers;  // of the pool
    size_t begun = 0;                      // of these
    std::vector<VkCommandBuffer> order;    // what is submitted
    size_t commands = 0;
    bool recording = false;
    CommandList list;
    std::unique_ptr<vulkan::Scratch> scratch;
    vulkan::Descriptors descriptors;
  };

  // The batch that commands go into, emptied where it begins.
  Batch* Gathering() {
    if (open_ != nullptr) return open_;
    Batch* const batch = &batches_[next_];
    if (batch->pool == 0) {
      batch->pool = NewPool(VK_COMMAND_POOL_CREATE_TRANSIENT_BIT);
      batch->descriptors.Open(device_, vk_);
    }
    Made(Wait(batch->number), "Waiting for a batch of commands");
    Made(vk_->vkResetCommandPool(device_, batch->pool, 0), "vkResetCommandPool");
    batch->descriptors.Reset();
    if (batch->scratch != nullptr) batch->scratch->Reset();
    batch->order.clear();
    batch->begun = batch->commands = 0;
    batch->recording = false;
    batch->number = number();
    next_ = (next_ + 1) % kBatches;
    open_ = batch;
    return batch;
  }

  VkResult EndList(Batch* batch) {
    if (!batch->recording) return VK_SUCCESS;
    batch->recording = false;
    return batch->list.End();
  }

  void Finished(uint64_t number) {
    uint64_t known = finished_.load(std::memory_order_relaxed);
    while (known < number && !finished_.compare_exchange_weak(known, number)) {
    }
  }

  void Made(VkResult result, const char* what) const {
    Check(result, [&] { return std::string(what) + " on " + name_; });
  }

  VkDevice device_ = nullptr;
  const DeviceFunctions* vk_ = nullptr;
  Memory* memory_ = nullptr;
  std::string name_;
  uint32_t family_ = 0;
  VkQueue queue_ = nullptr;
  VkSemaphore timeline_ = 0;
  VkCommandPool to_host_pool_ = 0;
  VkCommandBuffer to_host_ = nullptr;
  Batch batches_[kBatches];
  Batch* open_ = nullptr;
  size_t next_ = 0;
  std::atomic<uint64_t> submitted_{0};
  std::atomic<uint64_t> finished_{0};
};

}  // namespace vulkan
}  // namespace bitfabric
