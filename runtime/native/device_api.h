// TVM's device API over a backend's devices: attributes, memory, copies, synchronisation.
#pragma once

#include <tvm/ffi/string.h>
#include <tvm/runtime/device_api.h>

#include <algorithm>
#include <string>
#include <vector>

#include "device_facts.h"
#include "module_format.h"
#include "pool.h"

namespace bitfabric {

using tvm::runtime::DeviceAPI;
using tvm::runtime::DeviceAttrKind;

// `Backend` names an API's parts: see registration.h.
template <typename Backend>
class DeviceApi final : public DeviceAPI {
 public:
  static DeviceApi* Get() {
    static DeviceApi* const api = new DeviceApi();
    return api;
  }

  // The device that compiled host code has chosen for this thread, before each of its launches.
  static int& Current() {
    static thread_local int index = 0;
    return index;
  }

  void SetDevice(DLDevice device) final { Current() = device.device_id; }

  void GetAttr(DLDevice device, DeviceAttrKind kind, ffi::Any* value) final {
    const bool there = Devices().Has(device.device_id);
    if (kind == tvm::runtime::kExist) {
      *value = static_cast<int>(there);
      return;
    }
    auto& of = Devices().Known(device.device_id);
    const DeviceFacts& info = of.info;
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock:
        *value = static_cast<int64_t>(info.max_threads);
        break;
      case tvm::runtime::kWarpSize:
        *value = static_cast<int64_t>(info.subgroup_sizes.empty() ? 1 : info.subgroup_sizes.back());
        break;
      case tvm::runtime::kMaxSharedMemoryPerBlock:
        *value = static_cast<int64_t>(info.local_memory);
        break;
      case tvm::runtime::kComputeVersion:
        *value = ffi::String(info.version);
        break;
      case tvm::runtime::kDeviceName:
        *value = ffi::String(info.name);
        break;
      case tvm::runtime::kMaxClockRate:
        Told(int64_t{info.clock_mhz} * 1000, value);  // kHz
        break;
      case tvm::runtime::kMultiProcessorCount:
        Told(info.compute_units, value);
        break;
      case tvm::runtime::kMaxThreadDimensions:
        *value = ffi::String(Dimensions(info.max_thread_dimensions));
        break;
      case tvm::runtime::kDriverVersion:
        *value = ffi::String(info.driver);
        break;
      case tvm::runtime::kL2CacheSizeBytes:
        Told(static_cast<int64_t>(info.cache), value);
        break;
      case tvm::runtime::kTotalGlobalMemory:
        *value = static_cast<int64_t>(info.global_memory);
        break;
      case tvm::runtime::kAvailableGlobalMemory: {
        const size_t used = of.pool.usage().reserved;
        *value = static_cast<int64_t>(info.global_memory - std::min(used, info.global_memory));
        break;
      }
      default:  // the API has no such thing: the value stays None
        break;
    }
  }

  void GetTargetProperty(DLDevice device, const std::string& property, ffi::Any* value) final {
    if (!Devices().Has(device.device_id)) return;
    const DeviceFacts& info = Devices().Known(device.device_id).info;
    if (property == "max_num_threads" || property == "max_threads_per_block")
      *value = static_cast<int64_t>(info.max_threads);
    if (property == "max_shared_memory_per_block")
      *value = static_cast<int64_t>(info.local_memory);
    if (property == "device_name") *value = ffi::String(info.name);
  }

  void* AllocDataSpace(DLDevice device, size_t bytes, size_t, DLDataType) final {
    return Devices().At(device.device_id).pool.Allocate(bytes);
  }
  void FreeDataSpace(DLDevice device, void* block) final {
    Devices().At(device.device_id).pool.Free(static_cast<Block*>(block));
  }

  // Host code takes and gives back the same workspaces in every call. Rounding lets one serve
  // neighbouring sizes; the pool then hands out the one freed last.
  void* AllocWorkspace(DLDevice device, size_t bytes, DLDataType) final {
    size_t step = Pool::kPage;
    while (bytes > step * 16) step *= 2;
    return Devices().At(device.device_id).pool.Allocate((bytes + step - 1) / step * step);
  }
  void FreeWorkspace(DLDevice device, void* block) final { FreeDataSpace(device, block); }

  void StreamSync(DLDevice device, TVMStreamHandle) final {
    Devices().At(device.device_id).Wait();
  }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset,
                      size_t bytes, DLDevice from_device, DLDevice to_device, DLDataType,
                      TVMStreamHandle) final {
    if (bytes == 0) return;
    const bool reads = from_device.device_type == Backend::kType;
    const bool writes = to_device.device_type == Backend::kType;
    if (reads && writes) {
      CopyWithin(*static_cast<const Block*>(from), from_offset, *static_cast<Block*>(to), to_offset,
                 bytes);
    } else if (reads) {
      Devices()
          .At(from_device.device_id)
          .Read(*static_cast<const Block*>(from), from_offset, static_cast<char*>(to) + to_offset,
                bytes);
    } else {
      Devices()
          .At(to_device.device_id)
          .Write(*static_cast<Block*>(to), to_offset,
                 static_cast<const char*>(from) + from_offset, bytes);
    }
  }

 private:
  static auto& Devices() { return Backend::Devices::Get(); }

  // A value that not every API tells: None where this one does not.
  static void Told(int64_t number, ffi::Any* value) {
    if (number != 0) *value = number;
  }

  // Devices have contexts of their own, so between two of them the bytes go by way of the host.
  static void CopyWithin(const Block& from, size_t from_offset, const Block& to, size_t to_offset,
                         size_t bytes) {
    auto& source = Devices().At(from.device);
    if (from.device == to.device) {
      source.Copy(from, from_offset, to, to_offset, bytes);
      return;
    }
    auto& target = Devices().At(to.device);
    std::vector<char> part(std::min(bytes, size_t{8} << 20));
    for (size_t done = 0; done < bytes; done += part.size()) {
      const size_t now = std::min(part.size(), bytes - done);
      source.Read(from, from_offset + done, part.data(), now);
      target.Write(to, to_offset + done, part.data(), now);
    }
  }

  static std::string Dimensions(const std::vector<size_t>& sizes) {
    std::string text;
    for (size_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "[" + text + "]";
  }
};

}  // namespace bitfabric
