// All devices of all OpenCL platforms, in an order that stays.
#pragma once

#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "../device_list.h"
#include "device.h"

namespace bitfabric {
namespace opencl {

class Devices final : public DeviceList<Device> {
 public:
  // Never destroyed: tensors may be freed after the last static destructor has run.
  static Devices& Get() {
    static Devices* const devices = new Devices();
    return *devices;
  }

 private:
  Devices() : DeviceList("OpenCL") {
    missing_ = Api::Get().missing();
    if (!missing_.empty()) return;
    const Api& cl = Api::Get();
    UInt count = 0;
    cl.clGetPlatformIDs(0, nullptr, &count);
    std::vector<Handle> platforms(count);
    if (count != 0) cl.clGetPlatformIDs(count, platforms.data(), nullptr);
    // Registered after what the drivers registered when they were loaded, so it runs before that.
    std::atexit(Api::Retire);
    std::vector<std::pair<Handle, Handle>> by_rank[3];
    for (Handle platform : platforms) {
      for (Handle device : DevicesOf(platform)) {
        const Bits type = DeviceValue<Bits>(device, kDeviceType);
        by_rank[type & kTypeGpu ? 0 : type & kTypeCpu ? 2 : 1].emplace_back(platform, device);
      }
    }
    for (const auto& rank : by_rank)
      for (const auto& [platform, device] : rank)
        devices_.push_back(
            std::make_unique<Device>(static_cast<int>(devices_.size()), platform, device));
    if (devices_.empty())
      missing_ = "the OpenCL library " + cl.library() + " lists no device: no driver is installed.";
  }

  static std::vector<Handle> DevicesOf(Handle platform) {
    const Api& cl = Api::Get();
    UInt count = 0;
    if (cl.clGetDeviceIDs(platform, kTypeAll, 0, nullptr, &count) != 0 || count == 0) return {};
    std::vector<Handle> all(count), usable;
    cl.clGetDeviceIDs(platform, kTypeAll, count, all.data(), nullptr);
    for (Handle device : all)
      if (DeviceValue<UInt>(device, kDeviceAvailable) != 0 &&
          DeviceValue<UInt>(device, kDeviceCompilerAvailable) != 0)
        usable.push_back(device);
    return usable;
  }
};

}  // namespace opencl
}  // namespace bitfabric
