// All devices of all OpenCL platforms, in an order that stays.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device.h"

namespace bitfabric {
namespace opencl {

class Devices {
 public:
  // Never destroyed: tensors may be freed after the last static destructor has run.
  static Devices& Get() {
    static Devices* const devices = new Devices();
    return *devices;
  }

  size_t size() const { return devices_.size(); }
  bool Has(int index) const { return index >= 0 && static_cast<size_t>(index) < devices_.size(); }

  // The device, ready for commands; raises where there is none.
  Device& At(int index) {
    if (!Has(index)) RaiseMissing(index);
    Device& device = *devices_[static_cast<size_t>(index)];
    device.Open();
    return device;
  }
  // The same without making a context, to ask for its properties.
  Device& Known(int index) {
    if (!Has(index)) RaiseMissing(index);
    return *devices_[static_cast<size_t>(index)];
  }

  // A JSON list, or {"error": …} where there is no driver or no device.
  std::string Json() const {
    if (devices_.empty()) return JsonObject().Text("error", missing_).str();
    std::string list;
    for (const auto& device : devices_)
      list += (list.empty() ? "" : ", ") + device->info.Json(device->index);
    return "[" + list + "]";
  }

 private:
  Devices() : missing_(Api::Get().missing()) {
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

  [[noreturn]] void RaiseMissing(int index) const {
    if (devices_.empty()) Raise("OpenCL", Trouble::kDriverMissing, missing_);
    Raise("OpenCL", Trouble::kError,
          "there is no device " + std::to_string(index) + "; there are " +
              std::to_string(devices_.size()) + ", counted from 0.");
  }

  std::string missing_;
  std::vector<std::unique_ptr<Device>> devices_;
};

}  // namespace opencl
}  // namespace bitfabric
