// A recording's launches with their arguments: replaying is one call for each.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../json.h"
#include "../recording.h"
#include "launch.h"

namespace bitfabric {
namespace hip {

class Recording final : public RecordingOf<Recording, Device> {
 public:
  explicit Recording(std::shared_ptr<RecordedMemory<Device>> memory)
      : RecordingOf(std::move(memory)) {}

  // False where the call can't be replayed.
  bool End() { return Stop(launches_.size()); }

  void Add(Launch launch) {
    names_.push_back(std::make_unique<std::string>(*launch.name));
    launch.name = names_.back().get();
    launches_.push_back(std::move(launch));
  }

  void Replay() {
    for (Launch& launch : launches_) launch.Enqueue(device_);
  }

  // Replays once and returns each kernel's name and nanoseconds on the device, as JSON.
  std::string Profile() {
    std::vector<Handle> events{device_->MarkNow()};
    for (Launch& launch : launches_) {
      launch.Enqueue(device_);
      events.push_back(device_->MarkNow());
    }
    device_->Wait();
    std::string json = "[";
    for (size_t i = 0; i < launches_.size(); ++i) {
      json += (i == 0 ? "[" : ", [") + JsonText(*launches_[i].name) + ", " +
              std::to_string(device_->Between(events[i], events[i + 1])) + "]";
    }
    for (Handle event : events) Api::Get().hipEventDestroy(event);
    return json + "]";
  }

 private:
  std::vector<Launch> launches_;
  std::vector<std::unique_ptr<std::string>> names_;  // the kernels' may go before the recording
};

}  // namespace hip
}  // namespace bitfabric
