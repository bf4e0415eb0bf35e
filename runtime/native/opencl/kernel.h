// A kernel of a module: compiled for a device at its first launch there, and launched.
#pragma once

#include <tvm/ffi/function.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../arguments.h"
#include "device.h"
#include "program.h"
#include "recording.h"

namespace bitfabric {
namespace opencl {

class Kernel {
 public:
  // `devices`: how many there are.
  Kernel(const KernelInfo& kernel, std::string source, size_t devices)
      : name_(kernel.name),
        source_(std::move(source)),
        arguments_(ArgumentLayout(kernel)),
        launch_(kernel),
        built_(devices) {}

  ~Kernel() {
    for (Built& built : built_) {
      if (built.kernel != nullptr) Api::Get().clReleaseKernel(built.kernel);
      if (built.program != nullptr) Api::Get().clReleaseProgram(built.program);
    }
  }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Enqueues the kernel and returns at once. `values`: its arguments, then its launch extents.
  void Launch(Device* device, const TVMFFIAny* values, size_t count) {
    if (count != arguments_.size() + launch_.size())
      RaiseCount(name_, arguments_.size(), launch_.size(), count);
    WorkSize work;
    if (!launch_.Read(values + arguments_.size(), &work)) return;
    Built& built = built_[static_cast<size_t>(device->index)];
    if (!built.ready.load(std::memory_order_acquire)) Build(device, &built);
    size_t all[3];
    for (int i = 0; i < 3; ++i) all[i] = work.groups[i] * work.threads[i];
    const Status status = device->Submit([&](Handle queue) {
      Bind(*device, &built, values);
      return Api::Get().clEnqueueNDRangeKernel(queue, built.kernel,
                                               static_cast<UInt>(launch_.dimensions()), nullptr,
                                               all, work.threads, 0, nullptr, nullptr);
    });
    if (status != kSuccess) RaiseLaunch(status, device, &built, work);
    if (Recording* const recording = Recording::Of(device))
      recording->Add(name_, BoundCopy(device, built, values), launch_.dimensions(), all,
                     work.threads);
  }

 private:
  // What an argument was last set to, so that it is not set again: calls into the driver are most
  // of what a launch costs. A buffer is known by its serial number, not by its handle, which the
  // driver may give to another buffer later.
  struct Bound {
    uint64_t value = 0;
    bool set = false;
  };

  struct Built {
    std::atomic<bool> ready{false};
    std::mutex building;
    Handle program = nullptr;
    Handle kernel = nullptr;
    std::vector<Bound> bound;  // guarded by the device's queue
  };

  void Build(Device* device, Built* built) {
    std::lock_guard<std::mutex> lock(built->building);
    if (built->ready.load(std::memory_order_relaxed)) return;
    device->Open();
    built->program = ProgramBuilder(device).Build(name_, source_);
    Status status = kSuccess;
    built->kernel = Api::Get().clCreateKernel(built->program, name_.c_str(), &status);
    if (status != kSuccess) {
      Api::Get().clReleaseProgram(built->program);
      built->program = nullptr;
      device->Check(status, [&] { return "clCreateKernel of " + name_; });
    }
    built->bound.resize(arguments_.size());
    built->ready.store(true, std::memory_order_release);
  }

  // Returns a kernel object of its own with all arguments set.
  Handle BoundCopy(Device* device, const Built& built, const TVMFFIAny* values) {
    Status status = kSuccess;
    Built copy;
    copy.bound.resize(arguments_.size());
    copy.kernel = Api::Get().clCreateKernel(built.program, name_.c_str(), &status);
    device->Check(status, [&] { return "clCreateKernel of " + name_; });
    Bind(*device, &copy, values);
    return copy.kernel;
  }

  void Bind(const Device& device, Built* built, const TVMFFIAny* values) {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const ArgumentSlot slot = arguments_[i];
      Bound& bound = built->bound[i];
      Handle none = nullptr;
      uint64_t value;
      const void* address = &value;
      if (slot.kind == ArgumentKind::kBuffer) {
        const Block* block = BufferArgument(values[i], name_, i);
        if (block != nullptr && block->device != device.index)
          RaiseForeign("OpenCL", name_, device.Name(), i, *block);
        value = block == nullptr ? 0 : block->serial;
        address = block == nullptr ? &none : &block->handle;
      } else {
        value = ScalarArgument(values[i], slot.kind);
      }
      if (bound.set && bound.value == value) continue;
      bound.set = false;
      const Status status =
          Api::Get().clSetKernelArg(built->kernel, static_cast<UInt>(i), slot.bytes, address);
      if (status != kSuccess)
        RaiseStatus(status, "clSetKernelArg " + std::to_string(i) + " of kernel " + name_);
      bound = {value, true};
    }
  }

  [[noreturn]] void RaiseLaunch(Status status, Device* device, Built* built,
                                const WorkSize& work) const {
    size_t most = 0;
    Api::Get().clGetKernelWorkGroupInfo(built->kernel, device->id, kKernelGroupSize, sizeof most,
                                        &most, nullptr);
    const std::string what = LaunchText(name_, work, device->Name());
    std::string note;
    if (status == kInvalidGroupSize || status == kOutOfResources)
      note = "a group of this kernel may have " + std::to_string(most) + " threads there";
    device->Check(status, [&] { return what; }, false, note);
    throw;  // not reached: the status is no success
  }

  const std::string name_;
  const std::string source_;
  const std::vector<ArgumentSlot> arguments_;
  const LaunchLayout launch_;
  std::vector<Built> built_;  // one a device
};

}  // namespace opencl
}  // namespace bitfabric
