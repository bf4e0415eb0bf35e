// What a device says of itself, asked once when the devices are listed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "../device_facts.h"
#include "../json.h"
#include "api.h"

namespace bitfabric {
namespace opencl {

template <typename T>
T DeviceValue(Handle device, UInt what, T otherwise = T{}) {
  T value{};
  const Status status = Api::Get().clGetDeviceInfo(device, what, sizeof(T), &value, nullptr);
  return status == 0 ? value : otherwise;
}

// A property of any length as its items; empty where the device does not have it.
template <typename T>
std::vector<T> DeviceValues(Handle device, UInt what) {
  size_t bytes = 0;
  if (Api::Get().clGetDeviceInfo(device, what, 0, nullptr, &bytes) != 0) return {};
  std::vector<T> values(bytes / sizeof(T));
  bytes = values.size() * sizeof(T);
  if (bytes == 0 || Api::Get().clGetDeviceInfo(device, what, bytes, values.data(), nullptr) != 0)
    return {};
  return values;
}

inline std::string Trimmed(const std::vector<char>& raw) {
  std::string text(raw.begin(), raw.end());
  while (!text.empty() && (text.back() == '\0' || text.back() == ' ')) text.pop_back();
  const size_t start = text.find_first_not_of(' ');
  return start == std::string::npos ? "" : text.substr(start);
}

inline std::string PlatformText(Handle platform, UInt what) {
  size_t bytes = 0;
  if (Api::Get().clGetPlatformInfo(platform, what, 0, nullptr, &bytes) != 0) return "";
  std::vector<char> raw(bytes);
  if (Api::Get().clGetPlatformInfo(platform, what, bytes, raw.data(), nullptr) != 0) return "";
  return Trimmed(raw);
}

struct DeviceInfo : DeviceFacts {
  std::string platform, platform_version;
  Bits type = 0;
  bool local_memory_emulated = false, unified_memory = false, integer_dot = false;
  bool fp16 = false, fp64 = false, correctly_rounded = false;
  std::vector<std::string> extensions;
  int c_version = 12;  // the highest OpenCL C that the compiler knows: 12, 20, 30

  DeviceInfo(Handle of_platform, Handle device) {
    auto text = [device](UInt what) { return Trimmed(DeviceValues<char>(device, what)); };
    name = text(kDeviceName);
    vendor = text(kDeviceVendor);
    platform = PlatformText(of_platform, kPlatformName);
    platform_version = PlatformText(of_platform, kPlatformVersion);
    version = text(kDeviceVersion);
    driver = text(kDriverVersion);
    type = DeviceValue<Bits>(device, kDeviceType);
    compute_units = DeviceValue<UInt>(device, kDeviceComputeUnits);
    clock_mhz = DeviceValue<UInt>(device, kDeviceClock);
    global_memory = static_cast<size_t>(DeviceValue<Bits>(device, kDeviceGlobalBytes));
    max_buffer = static_cast<size_t>(DeviceValue<Bits>(device, kDeviceMaxAllocation));
    local_memory = static_cast<size_t>(DeviceValue<Bits>(device, kDeviceLocalBytes));
    local_memory_emulated = DeviceValue<UInt>(device, kDeviceLocalType) == 2;
    cache = static_cast<size_t>(DeviceValue<Bits>(device, kDeviceCacheBytes));
    unified_memory = DeviceValue<UInt>(device, kDeviceUnifiedMemory) != 0;
    max_threads = DeviceValue<size_t>(device, kDeviceGroupSize, 1);
    max_thread_dimensions = DeviceValues<size_t>(device, kDeviceItemSizes);
    alignment = PowerOfTwo(DeviceValue<UInt>(device, kDeviceAlignment, 1024) / 8);
    const Bits floats = DeviceValue<Bits>(device, kDeviceSingleConfig);
    correctly_rounded = (floats & kCorrectlyRounded) != 0;
    std::istringstream words(text(kDeviceExtensions));
    for (std::string word; words >> word;) extensions.push_back(word);
    fp16 = Has("cl_khr_fp16");
    fp64 = Has("cl_khr_fp64");
    integer_dot = Has("cl_khr_integer_dot_product") &&
                  (DeviceValue<Bits>(device, kDeviceDotProduct) & kPackedDotProduct) != 0;
    subgroup_sizes = SubgroupSizes(device);
    c_version = CVersion(device, text(kDeviceCVersion));
  }

  bool Has(const char* extension) const {
    for (const std::string& each : extensions)
      if (each == extension) return true;
    return false;
  }

  std::string Json(int index) const {
    const char* kind = type & kTypeGpu ? "gpu" : type & kTypeCpu ? "cpu" : "accelerator";
    JsonObject json;
    json.Number("index", static_cast<uint64_t>(index)).Text("name", name).Text("vendor", vendor);
    json.Text("platform", platform).Text("version", version).Text("driver", driver);
    json.Text("type", kind).Number("compute_units", compute_units).Number("clock_mhz", clock_mhz);
    json.Number("global_memory", global_memory).Number("max_buffer", max_buffer);
    json.Number("local_memory", local_memory).Flag("local_memory_emulated", local_memory_emulated);
    json.Number("max_threads", max_threads);
    json.Numbers("max_thread_dimensions", max_thread_dimensions);
    json.Number("subgroup", subgroup_sizes.empty() ? 0 : subgroup_sizes.back());
    json.Numbers("subgroup_sizes", subgroup_sizes).Number("alignment", alignment);
    json.Flag("fp16", fp16).Flag("fp64", fp64).Flag("integer_dot", integer_dot);
    json.Flag("unified_memory", unified_memory).Texts("extensions", extensions);
    return json.str();
  }

 private:
  static size_t PowerOfTwo(size_t least) {
    size_t power = 1;
    while (power < least) power *= 2;
    return power;
  }

  // OpenCL itself can tell the size only of a compiled kernel, so it comes from what the vendors
  // added; empty where they added nothing.
  std::vector<size_t> SubgroupSizes(Handle device) const {
    if (Has("cl_intel_required_subgroup_size"))
      return DeviceValues<size_t>(device, kDeviceSubgroupsIntel);
    UInt size = 0;
    if (Has("cl_nv_device_attribute_query"))
      size = DeviceValue<UInt>(device, kDeviceWarpSizeNvidia);
    if (Has("cl_amd_device_attribute_query"))
      size = DeviceValue<UInt>(device, kDeviceWavefrontAmd);
    return size == 0 ? std::vector<size_t>() : std::vector<size_t>{size};
  }

  static int CVersion(Handle device, const std::string& text) {
    int highest = 12;
    if (text.size() >= 12 && text.compare(0, 9, "OpenCL C ") == 0)
      highest = std::atoi(text.c_str() + 9) * 10 + std::atoi(text.c_str() + 11);
    for (const NameVersion& each : DeviceValues<NameVersion>(device, kDeviceCAllVersions)) {
      const int version = static_cast<int>((each.version >> 22) * 10 + (each.version >> 12 & 1023));
      if (version > highest) highest = version;
    }
    return highest;
  }
};

}  // namespace opencl
}  // namespace bitfabric
