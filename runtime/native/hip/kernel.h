// A kernel of a module: found on a device at its first launch there, and launched.
#pragma once

#include <tvm/ffi/function.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "../arguments.h"
#include "device.h"
#include "launch.h"
#include "recording.h"

namespace bitfabric {
namespace hip {

// Where a kernel's module comes from.
class ModuleSource {
 public:
  virtual ~ModuleSource() = default;
  // Returns the module as loaded on a device; raises where that fails.
  virtual Handle On(Device* device) = 0;
};

class Kernel {
 public:
  // `devices`: how many there are.
  Kernel(const KernelInfo& kernel, ModuleSource* source, size_t devices)
      : name_(kernel.name),
        source_(source),
        arguments_(ArgumentLayout(kernel)),
        launch_(kernel),
        found_(devices) {}
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Enqueues the kernel and returns at once. `values`: its arguments, then its launch extents.
  void Launch(Device* device, const TVMFFIAny* values, size_t count) {
    if (count != arguments_.size() + launch_.size())
      RaiseCount(name_, arguments_.size(), launch_.size(), count);
    hip::Launch launch;
    if (!launch_.Read(values + arguments_.size(), &launch.work)) return;
    launch.name = &name_;
    launch.function = FunctionOn(device);
    launch.arguments = Packed(*device, values);
    launch.Enqueue(device);
    if (Recording* const recording = Recording::Of(device)) recording->Add(std::move(launch));
  }

 private:
  struct Found {
    std::atomic<Handle> function{nullptr};
    std::mutex finding;
  };

  Handle FunctionOn(Device* device) {
    Found& found = found_[static_cast<size_t>(device->index)];
    Handle function = found.function.load(std::memory_order_acquire);
    if (function != nullptr) return function;
    std::lock_guard<std::mutex> lock(found.finding);
    const Status status =
        Api::Get().hipModuleGetFunction(&function, source_->On(device), name_.c_str());
    Device::Check(status, [&] {
      return "hipModuleGetFunction of " + name_ + " on " + device->Name();
    });
    found.function.store(function, std::memory_order_release);
    return function;
  }

  // The arguments as the kernel finds them: each at a multiple of its size.
  std::vector<char> Packed(const Device& device, const TVMFFIAny* values) const {
    std::vector<char> packed;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const ArgumentSlot slot = arguments_[i];
      uint64_t value = 0;
      if (slot.kind == ArgumentKind::kBuffer) {
        const Block* block = BufferArgument(values[i], name_, i);
        if (block != nullptr && block->device != device.index)
          RaiseForeign("ROCm", name_, device.Name(), i, *block);
        if (block != nullptr) value = reinterpret_cast<uint64_t>(Region::At(block->handle));
      } else {
        value = ScalarArgument(values[i], slot.kind);
      }
      const size_t at = (packed.size() + slot.bytes - 1) / slot.bytes * slot.bytes;
      packed.resize(at + slot.bytes);
      std::memcpy(&packed[at], &value, slot.bytes);
    }
    return packed;
  }

  const std::string name_;
  ModuleSource* const source_;
  const std::vector<ArgumentSlot> arguments_;
  const LaunchLayout launch_;
  std::vector<Found> found_;  // one a device
};

}  // namespace hip
}  // namespace bitfabric
