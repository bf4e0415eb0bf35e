// All devices, in HIP's order.
#pragma once

#include <cstdlib>
#include <memory>

#include "../device_list.h"
#include "device.h"

namespace bitfabric {
namespace hip {

class Devices final : public DeviceList<Device> {
 public:
  // Never destroyed: tensors may be freed after the last static destructor has run.
  static Devices& Get() {
    static Devices* const devices = new Devices();
    return *devices;
  }

 private:
  Devices() : DeviceList("ROCm") {
    missing_ = Api::Get().missing();
    if (!missing_.empty()) return;
    const Api& hip = Api::Get();
    int count = 0;
    Status status = hip.hipInit(0);
    if (status == kSuccess) status = hip.hipGetDeviceCount(&count);
    if (status != kSuccess && status != kNoDevice) {
      const char* name = hip.hipGetErrorName(status);
      missing_ = "the HIP library " + hip.library() + " does not start: " +
                 (name == nullptr ? "HIP error" : name) + " (" + std::to_string(status) + ").";
      return;
    }
    // Registered after what the library registered when it started, so it runs before that.
    std::atexit(Api::Retire);
    for (int i = 0; i < count; ++i) devices_.push_back(std::make_unique<Device>(i));
    if (devices_.empty())
      missing_ = "the HIP library " + hip.library() + " lists no device that it can use.";
  }
};

}  // namespace hip
}  // namespace bitfabric
