// A recording's launches as kernel objects of their own with their arguments set: replaying is one
// enqueue for each.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../recording.h"
#include "device.h"

namespace bitfabric {
namespace opencl {

class Recording final : public RecordingOf<Recording, Device> {
 public:
  explicit Recording(std::shared_ptr<RecordedMemory<Device>> memory)
      : RecordingOf(std::move(memory)) {}
  ~Recording() {
    for (const Launch& launch : launches_) Api::Get().clReleaseKernel(launch.kernel);
  }

  // False where the call can't be replayed.
  bool End() { return Stop(launches_.size()); }

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

  std::vector<Launch> launches_;
};

}  // namespace opencl
}  // namespace bitfabric
