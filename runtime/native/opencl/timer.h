// A timer of what the device does, for TVM's benchmarks and its tuner.
#pragma once

#include <tvm/runtime/timer.h>

#include "devices.h"

namespace bitfabric {
namespace opencl {

// Device time between two places in the queue.
class OpenCLTimer final : public tvm::runtime::TimerNode {
 public:
  explicit OpenCLTimer(DLDevice device) : device_(&Devices::Get().At(device.device_id)) {
    device_->EnableProfiling();
  }
  ~OpenCLTimer() override {
    for (Handle event : {start_, stop_})
      if (event != nullptr) Api::Get().clReleaseEvent(event);
  }
  void Start() final { start_ = device_->MarkNow(); }
  void Stop() final { stop_ = device_->MarkNow(); }
  int64_t SyncAndGetElapsedNanos() final {
    device_->Wait();
    return static_cast<int64_t>(EndOf(stop_) - EndOf(start_));
  }
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("bitfabric.OpenCLTimer", OpenCLTimer, tvm::runtime::TimerNode);

 private:
  Bits EndOf(Handle event) {
    Bits nanoseconds = 0;
    const Status status = Api::Get().clGetEventProfilingInfo(event, kProfilingEnd,
                                                             sizeof nanoseconds, &nanoseconds,
                                                             nullptr);
    device_->Check(status, [&] { return "The time of a marker on " + device_->Name(); });
    return nanoseconds;
  }

  Device* device_;
  Handle start_ = nullptr;
  Handle stop_ = nullptr;
};

}  // namespace opencl
}  // namespace bitfabric
