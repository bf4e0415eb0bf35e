// A timer of what the device does, for TVM's benchmarks and its tuner.
#pragma once

#include <tvm/runtime/timer.h>

#include <chrono>
#include <memory>

#include "devices.h"
#include "times.h"

namespace bitfabric {
namespace vulkan {

// Device time between two places in the queue; the host's where the queue has no clock.
class VulkanTimer final : public tvm::runtime::TimerNode {
 public:
  explicit VulkanTimer(DLDevice device) : device_(&Devices::Get().At(device.device_id)) {
    if (device_->info.tick_bits != 0) times_ = std::make_unique<Times>(device_, 2);
  }
  void Start() final {
    if (times_ != nullptr) {
      device_->Mark(times_->pool(), 0);
    } else {
      device_->Wait();
      start_ = Clock::now();
    }
  }
  void Stop() final {
    if (times_ != nullptr) device_->Mark(times_->pool(), 1);
  }
  int64_t SyncAndGetElapsedNanos() final {
    device_->Wait();
    if (times_ != nullptr) return static_cast<int64_t>(times_->Differences()[0]);
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count();
  }
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("bitfabric.VulkanTimer", VulkanTimer, tvm::runtime::TimerNode);

 private:
  using Clock = std::chrono::steady_clock;

  Device* const device_;
  std::unique_ptr<Times> times_;
  Clock::time_point start_;
};

}  // namespace vulkan
}  // namespace bitfabric
