// A timer of what the device does, for TVM's benchmarks and its tuner.
#pragma once

#include <tvm/runtime/timer.h>

#include "devices.h"

namespace bitfabric {
namespace hip {

// Device time between two places in the stream.
class HipTimer final : public tvm::runtime::TimerNode {
 public:
  explicit HipTimer(DLDevice device) : device_(&Devices::Get().At(device.device_id)) {}
  ~HipTimer() override {
    for (Handle event : {start_, stop_})
      if (event != nullptr) Api::Get().hipEventDestroy(event);
  }
  void Start() final { start_ = device_->MarkNow(); }
  void Stop() final { stop_ = device_->MarkNow(); }
  int64_t SyncAndGetElapsedNanos() final {
    device_->Wait();
    return device_->Between(start_, stop_);
  }
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("bitfabric.HipTimer", HipTimer, tvm::runtime::TimerNode);

 private:
  Device* device_;
  Handle start_ = nullptr;
  Handle stop_ = nullptr;
};

}  // namespace hip
}  // namespace bitfabric
