// One Vulkan device as a source of memory and a queue of commands: opened, handed commands, waited
// for.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../pool.h"
#include "inhabitants.h"
#include "logical.h"
#include "queue.h"
#include "wanted.h"

namespace bitfabric {
namespace vulkan {

class DeviceCore : public MemorySource {
 public:
  DeviceCore(int device_index, VkPhysicalDevice device, DeviceInfo facts)
      : index(device_index),
        id(device),
        info(std::move(facts)),
        pool(this, device_index, info.alignment, info.global_memory) {}

  const int index;
  const VkPhysicalDevice id;
  const DeviceInfo info;
  Pool pool;

  // "device 0 (NVIDIA H200)", for errors.
  std::string Name() const { return "device " + std::to_string(index) + " (" + info.name + ")"; }

  // Makes the logical device when the device is first used, with what the modules that are loaded
  // by then need; anew where more is needed later and nothing lives on it.
  void Open() {
    if (wanted_.load(std::memory_order_acquire) != WantedFeatures::Get().version()) OpenNow();
  }
  // The features that it was made with.
  std::vector<std::string> enabled() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return enabled_;
  }
  // Which logical device this is, counted from 1.
  uint64_t made() const { return made_.load(std::memory_order_acquire); }
  Inhabitants& inhabitants() { return inhabitants_; }

  VkDevice handle() const { return handle_; }
  const DeviceFunctions& functions() const { return functions_; }
  Memory& memory() { return memory_; }
  Queue& queue() { return queue_; }

  // Commands that the device was asked for so far.
  uint64_t submitted() const { return asked_.load(std::memory_order_acquire); }

  // Waits for all commands that this thread has asked for, at the least.
  void Wait() {
    const auto stay = inhabitants_.Stay();
    auto text = [&] { return "Waiting for " + Name(); };
    uint64_t last;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      last = queue_.number();
    }
    WaitFor(last, text);
  }
  // The same before something is destroyed, where there is nobody to hear of an error.
  void Settle() noexcept {
    if (Api::Retired() || !open_.load(std::memory_order_acquire)) return;
    try {
      Wait();
    } catch (...) {
    }
  }

  // Notes that the batch which is being gathered uses a buffer. For Append.
  void Used(const Use& use) {
    Region* const root = use.region->root;
    root->used = queue_.number();
    if ((use.access & kWrite) != 0) root->written = root->used;
  }

  // MemorySource
  void* Create(size_t bytes) override {
    const auto stay = inhabitants_.Stay();
    VkResult result = VK_SUCCESS;
    Region* region = memory_.Create(bytes, MemoryUse::kKernels, &result);
    if (region == nullptr && WaitForGraves())
      region = memory_.Create(bytes, MemoryUse::kKernels, &result);
    if (region == nullptr && !IsOutOfMemory(result))
      RaiseResult(result, "Allocating " + BytesText(bytes) + " on " + Name());
    if (region != nullptr) inhabitants_.Enter();
    return region;
  }
  void* Part(void* memory, size_t offset, size_t bytes) override {
    auto* part = new Region();
    part->root = static_cast<Region*>(memory);
    part->offset = offset;
    part->size = bytes;
    return part;
  }
  void Destroy(void* memory) override {
    auto* region = static_cast<Region*>(memory);
    if (region->root != region) {
      delete region;
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      memory_.FreeAfter(region, queue_.finished());
    }
    inhabitants_.Leave();
  }
  void WaitIdle() override {
    const auto stay = inhabitants_.Stay();
    Idle();
  }
  [[noreturn]] void RaiseOutOfMemory(size_t bytes, size_t in_use, size_t reserved) override {
    Raise("Vulkan", Trouble::kOutOfMemory,
          Name() + " has no room for " + BytesText(bytes) + ": " + BytesText(in_use) +
              " are in use and " + BytesText(reserved) + " reserved of " +
              BytesText(info.global_memory) + ", and one buffer may have " +
              BytesText(info.max_allocation) + ".");
  }

 protected:
  // Calls `record` with the queue alone, and counts the commands that it recorded. Commands are
  // recorded nowhere else.
  template <typename Record, typename Text>
  void Command(Record record, Text text, size_t commands = 1) {
    VkResult result;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      record();
      asked_.fetch_add(commands, std::memory_order_release);
      result = queue_.Count(commands);
    }
    if (result != VK_SUCCESS) Recover(result, text);
  }

  // Waits for a batch, handing it over where that was not done yet.
  template <typename Text>
  void WaitFor(uint64_t number, Text text) {
    if (queue_.finished() >= number) return;
    if (number > queue_.submitted()) HandOver(text);
    const VkResult result = queue_.Wait(std::min(number, queue_.submitted()));
    if (result != VK_SUCCESS) RaiseResult(result, text());
    std::lock_guard<std::mutex> lock(mutex_);
    memory_.Bury(queue_.finished());
  }

  // Submits what was gathered.
  template <typename Text>
  void HandOver(Text text) {
    VkResult result;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      result = queue_.Submit();
    }
    if (result != VK_SUCCESS) Recover(result, text);
  }

  // Tries to submit once more after the pool has given back what it keeps. Without the lock: the
  // pool waits for the queue, which takes it.
  template <typename Text>
  void Recover(VkResult result, Text text) {
    if (IsOutOfMemory(result)) {
      pool.ReleaseUnused();
      std::lock_guard<std::mutex> lock(mutex_);
      result = queue_.Submit();
    }
    if (result == VK_SUCCESS) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.Drop();
      apart_ = true;
    }
    RaiseResult(result, text());
  }

  // Gives back what a derived class keeps on the logical device, which has nothing left to do.
  virtual void Close() = 0;

  mutable std::mutex mutex_;  // the queue, and what commands did with each buffer
  Queue queue_;
  Memory memory_;
  std::atomic<uint64_t> asked_{0};
  bool apart_ = false;  // what came last was recorded apart: all that comes now waits for it

 private:
  void OpenNow() {
    if (open_.load(std::memory_order_acquire) && (Suffices() || !Empty())) return;
    const auto alone = inhabitants_.Alone();
    const uint64_t wanted = WantedFeatures::Get().version();
    const std::vector<std::string> features =
        FeaturesFor(info, WantedFeatures::Get().Names());
    if (open_.load(std::memory_order_relaxed)) {
      // Another thread may have been here first, or may have put something on the device.
      if (wanted_.load(std::memory_order_relaxed) == wanted || !inhabitants_.empty()) return;
      End();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    handle_ = MakeLogicalDevice(id, info, features, Name(), &functions_);
    auto has = [&](const char* name) {
      return std::find(features.begin(), features.end(), name) != features.end();
    };
    memory_.Open(handle_, &functions_, &info, has("bufferDeviceAddress"));
    queue_.Open(handle_, &functions_, &memory_, info);
    enabled_ = features;
    made_.fetch_add(1, std::memory_order_release);
    open_.store(true, std::memory_order_release);
    wanted_.store(wanted, std::memory_order_release);
  }

  // Whether the logical device has all that is wanted now, and so may stay.
  bool Suffices() {
    const uint64_t wanted = WantedFeatures::Get().version();
    const auto features = FeaturesFor(info, WantedFeatures::Get().Names());
    std::lock_guard<std::mutex> lock(mutex_);
    for (const std::string& name : features)
      if (std::find(enabled_.begin(), enabled_.end(), name) == enabled_.end()) return false;
    wanted_.store(wanted, std::memory_order_release);
    return true;
  }

  // Whether nothing lives on the device, once what nobody uses is given back.
  bool Empty() {
    if (pool.usage().in_use != 0) return false;
    pool.ReleaseUnused();
    return inhabitants_.empty();
  }

  // Ends the logical device and all that can be made again.
  void End() {
    Idle();
    std::lock_guard<std::mutex> lock(mutex_);
    open_.store(false, std::memory_order_release);
    wanted_.store(0, std::memory_order_release);
    for (const Pipeline* pipeline : inhabitants_.TakePipelines())
      DestroyPipeline(handle_, functions_, *pipeline);
    Close();
    queue_.Close();
    memory_.Bury(queue_.finished());
    functions_.vkDestroyDevice(handle_, nullptr);
    handle_ = nullptr;
  }

  // Of failures whoever asked for the commands will hear: the pool, which leads here, can't be
  // called back.
  void Idle() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.Submit();
    }
    queue_.Wait(queue_.submitted());
    std::lock_guard<std::mutex> lock(mutex_);
    memory_.Bury(queue_.finished());
  }

  // Waits for what was ended with commands under way; false where there is nothing of it.
  bool WaitForGraves() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!memory_.has_graves()) return false;
    }
    Idle();
    return true;
  }

  std::atomic<bool> open_{false};
  std::atomic<uint64_t> wanted_{0};  // the version of the wanted features that it was made for
  std::atomic<uint64_t> made_{0};
  std::vector<std::string> enabled_;
  Inhabitants inhabitants_;
  VkDevice handle_ = nullptr;
  DeviceFunctions functions_;
};

}  // namespace vulkan
}  // namespace bitfabric
