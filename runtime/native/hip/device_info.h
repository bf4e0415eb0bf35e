// What a device says of itself, asked once when the devices are listed.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../device_facts.h"
#include "../json.h"
#include "status.h"

namespace bitfabric {
namespace hip {

// hipDeviceProp_t as hipGetDevicePropertiesR0600 fills it: the places of what is read, in bytes.
// The layout is fixed by the function's name; it has 1472 bytes, and is given room to grow.
class Properties {
 public:
  explicit Properties(int device) : bytes_(kRoom) {
    const Status status = Api::Get().hipGetDevicePropertiesR0600(bytes_.data(), device);
    if (status != kSuccess)
      RaiseStatus(status, "hipGetDeviceProperties of device " + std::to_string(device));
  }

  std::string Text(size_t at) const { return std::string(&bytes_[at], strnlen(&bytes_[at], 256)); }
  size_t Size(size_t at) const { return Value<size_t>(at); }
  size_t Int(size_t at) const {
    const int32_t value = Value<int32_t>(at);
    return value < 0 ? 0 : static_cast<size_t>(value);
  }

  enum : size_t {
    kName = 0,
    kGlobalMemory = 288,
    kSharedMemory = 296,
    kWave = 308,
    kMaxThreads = 320,
    kMaxThreadDimensions = 324,
    kClock = 348,  // kHz
    kUnits = 388,
    kIntegrated = 396,
    kCache = 616,
    kArchitecture = 1160,
  };

 private:
  static constexpr size_t kRoom = 4096;

  template <typename T>
  T Value(size_t at) const {
    T value;
    std::memcpy(&value, &bytes_[at], sizeof value);
    return value;
  }

  std::vector<char> bytes_;
};

struct DeviceInfo : DeviceFacts {
  std::string architecture;  // "gfx90a:sramecc+:xnack-"
  bool unified_memory = false;

  explicit DeviceInfo(int device) {
    const Properties found(device);
    name = found.Text(Properties::kName);
    vendor = "AMD";
    architecture = found.Text(Properties::kArchitecture);
    int number = 0;
    Api::Get().hipRuntimeGetVersion(&number);
    // 60032831 is HIP 6.0.32831.
    version = std::to_string(number / 10000000) + "." + std::to_string(number / 100000 % 100);
    driver = "HIP " + version + "." + std::to_string(number % 100000);
    compute_units = static_cast<uint32_t>(found.Int(Properties::kUnits));
    clock_mhz = static_cast<uint32_t>(found.Int(Properties::kClock) / 1000);
    global_memory = found.Size(Properties::kGlobalMemory);
    max_buffer = global_memory;
    local_memory = found.Size(Properties::kSharedMemory);
    cache = found.Int(Properties::kCache);
    max_threads = found.Int(Properties::kMaxThreads);
    for (size_t axis = 0; axis < 3; ++axis)
      max_thread_dimensions.push_back(found.Int(Properties::kMaxThreadDimensions + 4 * axis));
    subgroup_sizes = {found.Int(Properties::kWave)};
    alignment = 256;
    unified_memory = found.Int(Properties::kIntegrated) != 0;
  }

  std::string Json(int index) const {
    JsonObject json;
    json.Number("index", static_cast<uint64_t>(index)).Text("name", name).Text("vendor", vendor);
    json.Text("version", version).Text("driver", driver).Text("type", "gpu");
    json.Text("architecture", architecture);
    json.Number("compute_units", compute_units).Number("clock_mhz", clock_mhz);
    json.Number("global_memory", global_memory).Number("max_buffer", max_buffer);
    json.Number("local_memory", local_memory).Number("max_threads", max_threads);
    json.Numbers("max_thread_dimensions", max_thread_dimensions);
    json.Number("subgroup", subgroup_sizes.back()).Numbers("subgroup_sizes", subgroup_sizes);
    json.Number("alignment", alignment).Flag("fp16", true).Flag("integer_dot", true);
    json.Flag("unified_memory", unified_memory);
    return json.str();
  }
};

}  // namespace hip
}  // namespace bitfabric
