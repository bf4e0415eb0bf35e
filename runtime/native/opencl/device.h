// One OpenCL device: its context, its in-order queue, its memory, and the commands that go into it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../pool.h"
#include "../staging.h"
#include "device_info.h"
#include "status.h"

namespace bitfabric {
namespace opencl {

class Device final : public MemorySource {
 public:
  Device(int device_index, Handle platform, Handle device)
      : index(device_index),
        id(device),
        info(platform, device),
        pool(this, device_index, info.alignment, info.global_memory),
        platform_(platform) {}

  const int index;
  const Handle id;
  const DeviceInfo info;
  Pool pool;

  // "device 0 (NVIDIA H200)", for errors.
  std::string Name() const { return "device " + std::to_string(index) + " (" + info.name + ")"; }

  // Makes the context and the queue when the device is first used.
  void Open() {
    if (!open_.load(std::memory_order_acquire)) OpenNow();
  }
  Handle context() const { return context_; }

  // Commands that the driver has accepted so far.
  uint64_t submitted() const { return submitted_.load(std::memory_order_acquire); }

  // Hands the queue to `enqueue`: (queue) → Status, alone. Commands are enqueued nowhere else. A
  // command that finds no memory is tried once more after the pool has given back what it keeps.
  // `ticket` receives the command's number.
  template <typename Enqueue>
  Status Submit(Enqueue&& enqueue, uint64_t* ticket = nullptr) {
    for (bool again = false;; again = true) {
      Status status;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        status = enqueue(queue_);
        if (status == kSuccess) {
          const uint64_t number = Accepted();
          if (ticket != nullptr) *ticket = number;
          return status;
        }
      }
      // Outside of the lock: the pool waits for the queue, which takes it.
      if (again || !IsOutOfMemory(status) || !pool.ReleaseUnused()) return status;
    }
  }

  // Host to device. The bytes may change when this returns, but the copy may still wait its turn;
  // with `keep` the caller promises instead that they last until the next Wait.
  void Write(const Block& to, size_t offset, const void* from, size_t bytes, bool keep = false) {
    auto text = [&] { return "Writing " + BytesText(bytes) + " to " + Name(); };
    if (bytes <= kStagedMost && !keep) {
      Check(Submit([&](Handle queue) {
              const char* copy = staging_.Copy(
                  from, bytes, [&] { return Mark(queue); }, [&](Handle e) { Finish(e); });
              return Api::Get().clEnqueueWriteBuffer(queue, to.handle, kFalse, offset, bytes, copy,
                                                     0, nullptr, nullptr);
            }),
            text);
      return;
    }
    Handle done = nullptr;
    uint64_t ticket = 0;
    auto enqueue = [&](Handle queue) {
      const Status status = Api::Get().clEnqueueWriteBuffer(
          queue, to.handle, kFalse, offset, bytes, from, 0, nullptr, keep ? nullptr : &done);
      if (!keep) Api::Get().clFlush(queue);
      return status;
    };
    Check(Submit(enqueue, &ticket), text);
    if (keep) return;
    Await(done, text);
    Finished(ticket);
  }

  // Host to device beside the commands of the queue, in a queue for copies alone; for a thread that
  // may wait. `after`: an event of MarkNow that the copy waits for, which is released, or null. The
  // bytes are there when this returns.
  void Upload(const Block& to, size_t offset, const void* from, size_t bytes, Handle after) {
    auto text = [&] { return "Writing " + BytesText(bytes) + " to " + Name(); };
    if (after != nullptr) Await(after, text);
    std::lock_guard<std::mutex> lock(upload_mutex_);
    if (uploads_ == nullptr) uploads_ = CreateQueue(0);
    Handle done = nullptr;
    Check(Api::Get().clEnqueueWriteBuffer(uploads_, to.handle, kFalse, offset, bytes, from, 0,
                                          nullptr, &done),
          text);
    Api::Get().clFlush(uploads_);
    Await(done, text);
  }

  // Device to host; the bytes are there when this returns.
  void Read(const Block& from, size_t offset, void* to, size_t bytes) {
    auto text = [&] { return "Reading " + BytesText(bytes) + " from " + Name(); };
    Handle done = nullptr;
    uint64_t ticket = 0;
    auto enqueue = [&](Handle queue) {
      const Status status = Api::Get().clEnqueueReadBuffer(queue, from.handle, kFalse, offset,
                                                           bytes, to, 0, nullptr, &done);
      Api::Get().clFlush(queue);
      return status;
    };
    Check(Submit(enqueue, &ticket), text);
    Await(done, text);
    Finished(ticket);
  }

  // Within the device; returns at once.
  void Copy(const Block& from, size_t from_offset, const Block& to, size_t to_offset,
            size_t bytes) {
    Check(Submit([&](Handle queue) {
            return Api::Get().clEnqueueCopyBuffer(queue, from.handle, to.handle, from_offset,
                                                  to_offset, bytes, 0, nullptr, nullptr);
          }),
          [&] { return "Copying " + BytesText(bytes) + " within " + Name(); });
  }

  // Fills a part with zero bytes; returns at once.
  void Clear(const Block& block, size_t offset, size_t bytes) {
    // The pattern's width must divide the place and the length.
    const uint32_t zero = 0;
    const size_t width = offset % 4 == 0 && bytes % 4 == 0 ? 4 : 1;
    Check(Submit([&](Handle queue) {
            return Api::Get().clEnqueueFillBuffer(queue, block.handle, &zero, width, offset, bytes,
                                                  0, nullptr, nullptr);
          }),
          [&] { return "Clearing " + BytesText(bytes) + " on " + Name(); });
  }

  // Waits for all commands that this thread has enqueued, at the least.
  void Wait() {
    const uint64_t goal = submitted_.load(std::memory_order_acquire);
    if (finished_.load(std::memory_order_acquire) >= goal) return;
    Handle queue;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue = queue_;
    }
    Check(Api::Get().clFinish(queue), [&] { return "Waiting for " + Name(); }, true);
    Finished(goal);
  }

  // Puts an event into the queue; its end is when all commands before it are done.
  Handle MarkNow() {
    Handle event = nullptr;
    Check(Submit([&](Handle queue) {
            const Status status =
                Api::Get().clEnqueueMarkerWithWaitList(queue, 0, nullptr, &event);
            Api::Get().clFlush(queue);  // whoever waits may be another thread
            return status;
          }),
          [&] { return "A marker for " + Name(); });
    return event;
  }

  // Waits for an event and releases it. `text`: () → what was asked for, for the error.
  template <typename Text>
  void Await(Handle event, Text text) {
    const Api& cl = Api::Get();
    Status status = cl.clWaitForEvents(1, &event);
    Status of_command = kSuccess;
    cl.clGetEventInfo(event, kEventStatus, sizeof of_command, &of_command, nullptr);
    cl.clReleaseEvent(event);
    if (of_command < 0) status = of_command;
    Check(status, text, true);
  }

  // Exchanges the queue for one that records times, which not every program should pay for: several
  // drivers write two time stamps a command and give up running neighbours at once. Once done, it
  // stays. The former queue is left to itself, as another thread may be waiting on it.
  void EnableProfiling() {
    Open();
    std::lock_guard<std::mutex> lock(mutex_);
    if (profiling_) return;
    Check(Api::Get().clFinish(queue_), [&] { return "Waiting for " + Name(); }, true);
    queue_ = CreateQueue(kProfiling);
    profiling_ = true;
  }

  // `text`: () → what was asked for. `waiting`: see RaiseStatus.
  template <typename Text>
  void Check(Status status, Text text, bool waiting = false, const std::string& note = "") {
    if (status == kSuccess) return;
    std::string told = message_.Take();
    if (!told.empty()) told = "the driver says: " + told;
    if (!note.empty()) told = note + (told.empty() ? "" : "; " + told);
    RaiseStatus(status, text(), waiting, told);
  }

  // MemorySource
  void* Create(size_t bytes) override {
    Open();
    Status status = kSuccess;
    Handle memory = Api::Get().clCreateBuffer(context_, kReadWrite, bytes, nullptr, &status);
    if (IsOutOfMemory(status)) return nullptr;
    Check(status, [&] { return "clCreateBuffer of " + BytesText(bytes) + " on " + Name(); });
    return memory;
  }
  void Destroy(void* memory) override { Api::Get().clReleaseMemObject(memory); }
  void* Part(void* memory, size_t offset, size_t bytes) override {
    const Region region{offset, bytes};
    Status status = kSuccess;
    Handle part =
        Api::Get().clCreateSubBuffer(memory, kReadWrite, kRegion, &region, &status);
    Check(status, [&] {
      return "clCreateSubBuffer of " + BytesText(bytes) + " at byte " + std::to_string(offset) +
             " on " + Name();
    });
    return part;
  }
  void WaitIdle() override { Wait(); }
  [[noreturn]] void RaiseOutOfMemory(size_t bytes, size_t in_use, size_t reserved) override {
    Raise("OpenCL", Trouble::kOutOfMemory,
          Name() + " has no room for " + BytesText(bytes) + ": " + BytesText(in_use) +
              " are in use and " + BytesText(reserved) + " reserved of " +
              BytesText(info.global_memory) + ", and one buffer may have " +
              BytesText(info.max_buffer) + ".");
  }

 private:
  // Drivers gather commands until they are flushed. A flush is a system call or more, so one is
  // made now and then: often enough that the device works while the host goes on.
  static constexpr uint64_t kFlushEvery = 32;
  // Commands that may wait in the queue are bounded, for a host that never looks at a result would
  // fill its memory with them: at most two windows.
  static constexpr uint64_t kWindow = 1024;

  void OpenNow() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (open_.load(std::memory_order_relaxed)) return;
    const intptr_t properties[] = {kContextPlatform, reinterpret_cast<intptr_t>(platform_), 0};
    Status status = kSuccess;
    context_ = Api::Get().clCreateContext(properties, 1, &id, DriverMessage::Receive, &message_,
                                          &status);
    Check(status, [&] { return "clCreateContext on " + Name(); });
    queue_ = CreateQueue(0);
    open_.store(true, std::memory_order_release);
  }

  Handle CreateQueue(Bits properties) {
    Status status = kSuccess;
    Handle queue = Api::Get().clCreateCommandQueue(context_, id, properties, &status);
    Check(status, [&] { return "clCreateCommandQueue on " + Name(); });
    return queue;
  }

  // Counts a command and returns its number. After it is enqueued, so that whoever reads the count
  // and then waits for the queue has waited for every command counted.
  uint64_t Accepted() {
    const uint64_t count = submitted_.fetch_add(1, std::memory_order_release) + 1;
    if (count % kFlushEvery == 0) Api::Get().clFlush(queue_);
    if (count % kWindow == 0) {
      Handle mark = Mark(queue_);
      std::swap(mark, window_);
      if (mark != nullptr) Finish(mark);
    }
    return count;
  }

  // The queue is in order: where one command is done, those before it are too.
  void Finished(uint64_t count) {
    uint64_t known = finished_.load(std::memory_order_relaxed);
    while (known < count && !finished_.compare_exchange_weak(known, count)) {
    }
  }

  // An event that is not flushed may never come, so whoever will wait for one flushes.
  Handle Mark(Handle queue) {
    Handle event = nullptr;
    Check(Api::Get().clEnqueueMarkerWithWaitList(queue, 0, nullptr, &event),
          [&] { return "A marker for " + Name(); });
    Api::Get().clFlush(queue);
    return event;
  }
  void Finish(Handle event) {
    Await(event, [&] { return "Waiting for " + Name(); });
  }

  const Handle platform_;
  std::atomic<bool> open_{false};
  Handle context_ = nullptr;
  DriverMessage message_;
  std::mutex mutex_;  // the queue, and with it every kernel's arguments and the staging memory
  Handle queue_ = nullptr;
  std::mutex upload_mutex_;
  Handle uploads_ = nullptr;  // the queue for copies, made when it is first needed
  bool profiling_ = false;
  Handle window_ = nullptr;
  Staging<Handle> staging_;
  std::atomic<uint64_t> submitted_{0};  // commands accepted by the driver
  std::atomic<uint64_t> finished_{0};   // of these, known to be done
};

}  // namespace opencl
}  // namespace bitfabric
