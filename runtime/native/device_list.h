// The devices of an API, in an order that stays.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "errors.h"
#include "json.h"

namespace bitfabric {

template <typename Device>
class DeviceList {
 public:
  size_t size() const { return devices_.size(); }
  bool Has(int index) const { return index >= 0 && static_cast<size_t>(index) < devices_.size(); }

  // The device, ready for commands; raises where there is none.
  Device& At(int index) {
    Device& device = Known(index);
    device.Open();
    return device;
  }
  // The same without opening it, to ask for its properties.
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

 protected:
  // `api`: its name in errors.
  explicit DeviceList(const char* api) : api_(api) {}

  std::string missing_;  // why there is no device
  std::vector<std::unique_ptr<Device>> devices_;

 private:
  [[noreturn]] void RaiseMissing(int index) const {
    if (devices_.empty()) Raise(api_, Trouble::kDriverMissing, missing_);
    Raise(api_, Trouble::kError,
          "there is no device " + std::to_string(index) + "; there are " +
              std::to_string(devices_.size()) + ", counted from 0.");
  }

  const char* const api_;
};

}  // namespace bitfabric
