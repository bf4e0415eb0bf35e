// A call of a compiled function as the list of its launches, to be launched again without the call.
//
// What a launch costs the host is mostly the virtual machine's bookkeeping and the setting of
// arguments. A function whose arguments, sizes and memory stay the same needs neither. The memory
// that the call took stays set apart, so that nobody else's data can lie where a replay writes.
#pragma once

#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "pool.h"

namespace bitfabric {

namespace ffi = tvm::ffi;

// The memory of several recordings, which take turns: no two of them run at once, and what one
// leaves for the next to read is not free.
template <typename Device>
class RecordedMemory {
 public:
  explicit RecordedMemory(Device* of) : device(of) { arena.pool = &of->pool; }
  ~RecordedMemory() { device->pool.EndArena(&arena); }
  RecordedMemory(const RecordedMemory&) = delete;
  RecordedMemory& operator=(const RecordedMemory&) = delete;

  Device* const device;
  Arena arena;
};

// What an API's class `Recording` is derived from.
template <typename Recording, typename Device>
class RecordingOf {
 public:
  RecordingOf(const RecordingOf&) = delete;
  RecordingOf& operator=(const RecordingOf&) = delete;

  // From here on the thread's launches on the device are kept, and its memory is the recording's.
  void Begin() {
    device_->Open();
    if (Current() != nullptr) TVM_FFI_THROW(RuntimeError) << "A call is being recorded already.";
    Current() = static_cast<Recording*>(this);
    Arena::Current() = &memory_->arena;
    before_ = device_->submitted();
  }

  // The recording that the thread's launches on a device go to, or null.
  static Recording* Of(const Device* device) {
    Recording* const current = Current();
    return current != nullptr && current->device_ == device ? current : nullptr;
  }

  // Ends the recording. False where the device got other commands than the `launches` that were
  // kept: such a call can't be replayed.
  bool Stop(size_t launches) {
    Arena::Current() = nullptr;
    Current() = nullptr;
    return device_->submitted() - before_ == launches;
  }

 protected:
  explicit RecordingOf(std::shared_ptr<RecordedMemory<Device>> memory)
      : memory_(std::move(memory)), device_(memory_->device) {}
  ~RecordingOf() = default;

  const std::shared_ptr<RecordedMemory<Device>> memory_;
  Device* const device_;

 private:
  static Recording*& Current() {
    static thread_local Recording* current = nullptr;
    return current;
  }

  uint64_t before_ = 0;  // commands of the device before the recording
};

// Calls a function and records its launches. Returns a function that launches them again, which
// stands for a call with the same arguments, and given true returns their times as JSON; null where
// the call did more than launch kernels.
template <typename Backend, typename Memory>
ffi::Optional<ffi::Function> Record(const std::shared_ptr<Memory>& memory,
                                    const ffi::Function& function, const ffi::Function& taken) {
  auto recording = std::make_shared<typename Backend::Recording>(memory);
  recording->Begin();
  try {
    taken(function());
  } catch (...) {
    recording->Stop(0);
    throw;
  }
  if (!recording->End()) return std::nullopt;
  return ffi::Function::FromTyped([recording](bool timed) {
    if (timed) return ffi::String(recording->Profile());
    recording->Replay();
    return ffi::String();
  });
}

// Returns a function (function, taken) → replay or null: `taken` is called with the result of the
// recorded call, whose memory every replay writes to anew. All share one memory.
template <typename Backend>
ffi::Function Recorder(int device) {
  using Memory = RecordedMemory<typename Backend::Device>;
  auto memory = std::make_shared<Memory>(&Backend::Devices::Get().At(device));
  return ffi::Function::FromTyped(
      [memory](const ffi::Function& function, const ffi::Function& taken) {
        return Record<Backend>(memory, function, taken);
      });
}

}  // namespace bitfabric
