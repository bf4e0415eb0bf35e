// What lives on a logical device, which decides whether it may be replaced by another one.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <vector>

#include "commands.h"

namespace bitfabric {
namespace vulkan {

// Buffers and recordings must stay. Pipelines are made again from their code, so they may go.
class Inhabitants {
 public:
  // Whoever makes or ends something keeps this, so that the device is not replaced meanwhile.
  std::shared_lock<std::shared_mutex> Stay() {
    return std::shared_lock<std::shared_mutex>(mutex_);
  }
  // Whoever replaces the device keeps this.
  std::unique_lock<std::shared_mutex> Alone() {
    return std::unique_lock<std::shared_mutex>(mutex_);
  }

  // One more that must stay, or one less.
  void Enter() { count_.fetch_add(1, std::memory_order_acq_rel); }
  void Leave() { count_.fetch_sub(1, std::memory_order_acq_rel); }
  bool empty() const { return count_.load(std::memory_order_acquire) == 0; }

  void Enter(Pipeline* pipeline) {
    std::lock_guard<std::mutex> lock(pipelines_mutex_);
    pipelines_.insert(pipeline);
  }
  // False where the pipeline went with the device that it was made on.
  bool Leave(Pipeline* pipeline) {
    std::lock_guard<std::mutex> lock(pipelines_mutex_);
    return pipelines_.erase(pipeline) != 0;
  }
  std::vector<Pipeline*> TakePipelines() {
    std::lock_guard<std::mutex> lock(pipelines_mutex_);
    std::vector<Pipeline*> all(pipelines_.begin(), pipelines_.end());
    pipelines_.clear();
    return all;
  }

 private:
  std::shared_mutex mutex_;
  std::atomic<size_t> count_{0};
  std::mutex pipelines_mutex_;
  std::set<Pipeline*> pipelines_;
};

// Gives a pipeline's objects back.
inline void DestroyPipeline(VkDevice device, const DeviceFunctions& vk, const Pipeline& pipeline) {
  if (pipeline.handle != 0) vk.vkDestroyPipeline(device, pipeline.handle, nullptr);
  if (pipeline.layout != 0) vk.vkDestroyPipelineLayout(device, pipeline.layout, nullptr);
  if (pipeline.set != 0) vk.vkDestroyDescriptorSetLayout(device, pipeline.set, nullptr);
}

}  // namespace vulkan
}  // namespace bitfabric
