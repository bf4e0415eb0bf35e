// A call of a compiled function as the list of its launches, to be launched again without the call.
//
// What a launch costs the host is mostly the virtual machine's bookkeeping and the setting of
// arguments. A function whose arguments, sizes and memory stay the same needs neither: each launch
// of a recording has a kernel object of its own with its arguments set, and replaying is one
// enqueue for each. The memory that the call took stays set apart, so that nobody else's data can
// lie where a replay writes.
#pragma once

#include <tvm/ffi/error.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device.h"

namespace bitfabric {
namespace opencl {

// The memory of several recordings, which take turns: no two of them run at once, and what one
// leaves for the next to read is not free.
class RecordedMemory {
 public:
  explicit RecordedMemory(Device* of) : device(of) { arena.pool = &of->pool; }
  ~RecordedMemory() { device->pool.EndArena(&arena); }
  RecordedMemory(const RecordedMemory&) = delete;
  RecordedMemory& operator=(const RecordedMemory&) = delete;

  Device* const device;
  Arena arena;
};

class Recording {
 public:
  explicit Recording(std::shared_ptr<RecordedMemory> memory)
      : memory_(std::move(memory)), device_(memory_->device) {}
  ~Recording() {
    for (const Launch& launch : launches_) Api::Get().clReleaseKernel(launch.kernel);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // From here on the thread's launches on the device are kept, and its memory is the recording's.
  void Begin() {
    device_->Open();
    if (Current() != nullptr) TVM_FFI_THROW(RuntimeError) << "A call is being recorded already.";
    Current() = this;
    Arena::Current() = &memory_->arena;
    before_ = device_->submitted();
  }

  // Ends the recording. False where the device got other commands than the launches: such a call
  // can't be replayed.
  bool End() {
    Arena::Current() = nullptr;
    Current() = nullptr;
    return device_->submitted() - before_ == launches_.size();
  }

  void Replay() {
    for (const Launch& launch : launches_) Enqueue(launch, nullptr);
  }

  // Replays once and returns each kernel's name and nanoseconds on the device, as JSON.
  std::string Profile() {
    device_->EnableProfiling();
    std::vector<Handle> events(launches_.size());
    for (size_t i = 0; i < launches_.size(); ++i) Enqueue(launches_[i], &events[i]);
    device_->Wait();
    std::string json = "[";
    for (size_t i = 0; i < launches_.size(); ++i) {
      Bits times[2] = {0, 0};
      Api::Get().clGetEventProfilingInfo(events[i], kProfilingStart, 8, &times[0], nullptr);
      Api::Get().clGetEventProfilingInfo(events[i], kProfilingEnd, 8, &times[1], nullptr);
      Api::Get().clReleaseEvent(events[i]);
      json += (i == 0 ? "[\"" : ", [\"") + launches_[i].name + "\", " +
              std::to_string(times[1] - times[0]) + "]";
    }
    return json + "]";
  }

  // Takes a kernel object whose arguments are set and which nobody else uses.
  void Add(const std::string& name, Handle kernel, int dimensions, const size_t (&all)[3],
           const size_t (&threads)[3]) {
    Launch launch{name, kernel, static_cast<UInt>(dimensions), {}, {}};
    for (int i = 0; i < 3; ++i) {
      launch.all[i] = all[i];
      launch.threads[i] = threads[i];
    }
    launches_.push_back(launch);
  }

  // The recording that the thread's launches on a device go to, or null.
  static Recording* Of(const Device* device) {
    Recording* const current = Current();
    return current != nullptr && current->device_ == device ? current : nullptr;
  }

 private:
  struct Launch {
    std::string name;
    Handle kernel;
    UInt dimensions;
    size_t all[3];
    size_t threads[3];
  };

  void Enqueue(const Launch& launch, Handle* event) {
    const Status status = device_->Submit([&](Handle queue) {
      return Api::Get().clEnqueueNDRangeKernel(queue, launch.kernel, launch.dimensions, nullptr,
                                               launch.all, launch.threads, 0, nullptr, event);
    });
    device_->Check(status, [&] {
      return "Launching the recorded kernel " + launch.name + " on " + device_->Name();
    });
  }

  static Recording*& Current() {
    static thread_local Recording* current = nullptr;
    return current;
  }

  const std::shared_ptr<RecordedMemory> memory_;
  Device* const device_;
  uint64_t before_ = 0;  // commands of the device before the recording
  std::vector<Launch> launches_;
};

}  // namespace opencl
}  // namespace bitfabric
