// One device: its stream, its memory, and the commands that go into the stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>

#include "../pool.h"
#include "../staging.h"
#include "device_info.h"
#include "status.h"

namespace bitfabric {
namespace hip {

// What a block's handle points to: an allocation, or a part of one, which is its address alone.
struct Region {
  char* address;
  bool whole;

  static char* At(const void* handle) { return static_cast<const Region*>(handle)->address; }
};

class Device final : public MemorySource {
 public:
  explicit Device(int device_index)
      : index(device_index),
        info(device_index),
        pool(this, device_index, info.alignment, info.global_memory) {}

  const int index;
  const DeviceInfo info;
  Pool pool;

  // "device 0 (AMD Instinct MI250)", for errors.
  std::string Name() const { return "device " + std::to_string(index) + " (" + info.name + ")"; }

  // Makes the stream when the device is first used.
  void Open() {
    if (!open_.load(std::memory_order_acquire)) OpenNow();
  }

  // Commands that the library has accepted so far.
  uint64_t submitted() const { return submitted_.load(std::memory_order_acquire); }

  // HIP's calls go to the device that the thread has chosen last.
  void Choose() const {
    static thread_local int chosen = -1;
    if (chosen == index) return;
    const Status status = Api::Get().hipSetDevice(index);
    if (status != kSuccess) RaiseStatus(status, "hipSetDevice of " + Name());
    chosen = index;
  }

  // Hands the stream to `enqueue`: (stream) → Status, alone. Commands are enqueued nowhere else. A
  // command that finds no memory is tried once more after the pool has given back what it keeps.
  template <typename Enqueue>
  Status Submit(Enqueue&& enqueue, uint64_t* ticket = nullptr) {
    Choose();
    for (bool again = false;; again = true) {
      Status status;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        status = enqueue(stream_);
        if (status == kSuccess) {
          const uint64_t number = Accepted();
          if (ticket != nullptr) *ticket = number;
          return status;
        }
      }
      // Outside of the lock: the pool waits for the stream.
      if (again || status != kOutOfMemory || !pool.ReleaseUnused()) return status;
    }
  }

  // Host to device. The bytes may change when this returns, but the copy may still wait its turn;
  // with `keep` the caller promises instead that they last until the next Wait.
  void Write(const Block& to, size_t offset, const void* from, size_t bytes, bool keep = false) {
    const bool staged = bytes <= kStagedMost && !keep;
    uint64_t ticket = 0;
    const Status status = Submit(
        [&](Handle stream) {
          const void* source = staged ? staging_.Copy(
                                            from, bytes, [&] { return Mark(stream); },
                                            [&](Handle event) { Finish(event); })
                                      : from;
          return Api::Get().hipMemcpyHtoDAsync(Region::At(to.handle) + offset, source, bytes,
                                               stream);
        },
        &ticket);
    Check(status, [&] { return "Writing " + BytesText(bytes) + " to " + Name(); });
    if (!staged && !keep) WaitFor(ticket);
  }

  // Device to host; the bytes are there when this returns.
  void Read(const Block& from, size_t offset, void* to, size_t bytes) {
    uint64_t ticket = 0;
    const Status status = Submit(
        [&](Handle stream) {
          return Api::Get().hipMemcpyDtoHAsync(to, Region::At(from.handle) + offset, bytes, stream);
        },
        &ticket);
    Check(status, [&] { return "Reading " + BytesText(bytes) + " from " + Name(); });
    WaitFor(ticket);
  }

  // Within the device; returns at once.
  void Copy(const Block& from, size_t from_offset, const Block& to, size_t to_offset,
            size_t bytes) {
    Check(Submit([&](Handle stream) {
            return Api::Get().hipMemcpyDtoDAsync(Region::At(to.handle) + to_offset,
                                                 Region::At(from.handle) + from_offset, bytes,
                                                 stream);
          }),
          [&] { return "Copying " + BytesText(bytes) + " within " + Name(); });
  }

  // Fills a part with zero bytes; returns at once.
  void Clear(const Block& block, size_t offset, size_t bytes) {
    Check(Submit([&](Handle stream) {
            return Api::Get().hipMemsetD8Async(Region::At(block.handle) + offset, 0, bytes, stream);
          }),
          [&] { return "Clearing " + BytesText(bytes) + " on " + Name(); });
  }

  // Waits for all commands that this thread has enqueued, at the least.
  void Wait() { WaitFor(submitted()); }

  // Puts an event into the stream; its time is when all commands before it are done.
  Handle MarkNow() {
    Handle event = nullptr;
    Check(Submit([&](Handle stream) {
            event = NewEvent(kEventDefault);
            return Api::Get().hipEventRecord(event, stream);
          }),
          [&] { return "hipEventRecord on " + Name(); });
    return event;
  }

  // Nanoseconds from one event to another, both of which are done.
  int64_t Between(Handle start, Handle stop) const {
    float milliseconds = 0;
    Check(Api::Get().hipEventElapsedTime(&milliseconds, start, stop),
          [&] { return "hipEventElapsedTime on " + Name(); });
    return static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6 + 0.5);
  }

  // `text`: () → what was asked for.
  template <typename Text>
  static void Check(Status status, Text text) {
    if (status != kSuccess) RaiseStatus(status, text());
  }

  // MemorySource
  void* Create(size_t bytes) override {
    Open();
    Choose();
    Address memory = nullptr;
    const Status status = Api::Get().hipMalloc(&memory, bytes);
    if (status == kOutOfMemory) return nullptr;
    Check(status, [&] { return "hipMalloc of " + BytesText(bytes) + " on " + Name(); });
    return new Region{static_cast<char*>(memory), true};
  }
  // hipFree waits for the device, so no command still uses the memory.
  void Destroy(void* memory) override {
    auto* region = static_cast<Region*>(memory);
    if (region->whole) {
      Choose();
      Api::Get().hipFree(region->address);
    }
    delete region;
  }
  void* Part(void* memory, size_t offset, size_t) override {
    return new Region{Region::At(memory) + offset, false};
  }
  void WaitIdle() override { Wait(); }
  [[noreturn]] void RaiseOutOfMemory(size_t bytes, size_t in_use, size_t reserved) override {
    Raise("ROCm", Trouble::kOutOfMemory,
          Name() + " has no room for " + BytesText(bytes) + ": " + BytesText(in_use) +
              " are in use and " + BytesText(reserved) + " reserved of " +
              BytesText(info.global_memory) + ".");
  }

 private:
  // Commands that may wait in the stream are bounded, for a host that never looks at a result would
  // fill its memory with them: at most two windows.
  static constexpr uint64_t kWindow = 1024;

  void OpenNow() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (open_.load(std::memory_order_relaxed)) return;
    Choose();
    Check(Api::Get().hipStreamCreateWithFlags(&stream_, kStreamNonBlocking),
          [&] { return "hipStreamCreate on " + Name(); });
    open_.store(true, std::memory_order_release);
  }

  void WaitFor(uint64_t goal) {
    if (finished_.load(std::memory_order_acquire) >= goal) return;
    Choose();
    Check(Api::Get().hipStreamSynchronize(stream_), [&] { return "Waiting for " + Name(); });
    // The stream is in order: where one command is done, those before it are too.
    uint64_t known = finished_.load(std::memory_order_relaxed);
    while (known < goal && !finished_.compare_exchange_weak(known, goal)) {
    }
  }

  // Counts a command and returns its number. After it is enqueued, so that whoever reads the count
  // and then waits has waited for every command counted.
  uint64_t Accepted() {
    const uint64_t count = submitted_.fetch_add(1, std::memory_order_release) + 1;
    if (count % kWindow == 0) {
      Handle mark = Mark(stream_);
      std::swap(mark, window_);
      if (mark != nullptr) Finish(mark);
    }
    return count;
  }

  Handle NewEvent(unsigned flags) const {
    Handle event = nullptr;
    Check(Api::Get().hipEventCreateWithFlags(&event, flags),
          [&] { return "hipEventCreate on " + Name(); });
    return event;
  }
  Handle Mark(Handle stream) {
    Handle event = NewEvent(kEventDisableTiming);
    Check(Api::Get().hipEventRecord(event, stream),
          [&] { return "hipEventRecord on " + Name(); });
    return event;
  }
  void Finish(Handle event) {
    const Status status = Api::Get().hipEventSynchronize(event);
    Api::Get().hipEventDestroy(event);
    Check(status, [&] { return "Waiting for " + Name(); });
  }

  std::atomic<bool> open_{false};
  std::mutex mutex_;  // the stream's order, and the staging memory
  Handle stream_ = nullptr;
  Handle window_ = nullptr;
  Staging<Handle> staging_;
  std::atomic<uint64_t> submitted_{0};  // commands accepted
  std::atomic<uint64_t> finished_{0};   // of these, known to be done
};

}  // namespace hip
}  // namespace bitfabric
