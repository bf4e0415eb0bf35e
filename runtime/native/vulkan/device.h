// One Vulkan device, and the commands that it takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <mutex>
#include <string>

#include "../staging.h"
#include "device_core.h"

namespace bitfabric {
namespace vulkan {

inline Region& RegionOf(const Block& block) { return *static_cast<Region*>(block.handle); }

class Device final : public DeviceCore {
 public:
  using DeviceCore::DeviceCore;

  // Records a kernel's launch; returns at once. `text`: () → what was asked for, for the error.
  template <typename Text>
  void Run(Launch* launch, Text text) {
    Command(
        [&] {
          if (launch->pipeline->made_on != made())
            Raise("Vulkan", Trouble::kError,
                  text() + " failed: the device was made anew meanwhile. Launch it again.");
          const size_t bytes = launch->pipeline->block_bytes;
          if (launch->pipeline->spilled) launch->stored = Room(bytes)->Copy(launch->block, bytes);
          Order(launch->uses, launch->use_count);
          queue_.List()->Run(*launch, queue_.Descriptors());
        },
        text);
  }

  // Host to device. The bytes may change when this returns.
  void Write(const Block& to, size_t offset, const void* from, size_t bytes, bool = false) {
    Region& region = RegionOf(to);
    auto text = [&] { return "Writing " + BytesText(bytes) + " to " + Name(); };
    if (region.host() != nullptr && IsFree(*region.root, bytes > kStagedMost, text)) {
      asked_.fetch_add(1, std::memory_order_release);
      std::memcpy(region.host() + offset, from, bytes);
      return;
    }
    const char* next = static_cast<const char*>(from);
    for (size_t done = 0; done < bytes;) {
      const size_t now = std::min(bytes - done, Queue::kScratch);
      Command(
          [&] {
            Scratch* const scratch = Room(now);
            const size_t place = scratch->Place(next + done, now);
            Order({{&region, offset + done, now, kWrite}});
            queue_.List()->Copy(*scratch->region(), place, region, offset + done, now);
          },
          text);
      done += now;
    }
  }

  // Where the host sees a block's memory; null where it does not. It may be written once `SettleUse`
  // has returned, until a command that uses it is asked for.
  char* Seen(const Block& block) { return RegionOf(block).host(); }
  void SettleUse(const Block& block) {
    IsFree(*RegionOf(block).root, true, [&] { return "Waiting for " + Name(); });
  }

  // Device to host; the bytes are there when this returns.
  void Read(const Block& from, size_t offset, void* to, size_t bytes) {
    Region& region = RegionOf(from);
    auto text = [&] { return "Reading " + BytesText(bytes) + " from " + Name(); };
    asked_.fetch_add(1, std::memory_order_release);
    if (region.host() != nullptr && memory_.read_in_place()) {
      uint64_t written;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        written = region.root->written;
      }
      WaitFor(written, text);
      std::memcpy(to, region.host() + offset, bytes);
      return;
    }
    Download(&region, offset, static_cast<char*>(to), bytes, text);
  }

  // Within the device; returns at once.
  void Copy(const Block& from, size_t from_offset, const Block& to, size_t to_offset,
            size_t bytes) {
    Region &source = RegionOf(from), &target = RegionOf(to);
    Command(
        [&] {
          Order({{&source, from_offset, bytes, kRead}, {&target, to_offset, bytes, kWrite}});
          queue_.List()->Copy(source, from_offset, target, to_offset, bytes);
        },
        [&] { return "Copying " + BytesText(bytes) + " within " + Name(); });
  }

  // Fills a part with zero bytes; returns at once.
  void Clear(const Block& block, size_t offset, size_t bytes) {
    // The device fills words; bytes before and after them are written.
    static const char kZeros[4] = {};
    Region& region = RegionOf(block);
    const size_t place = region.offset + offset;
    const size_t head = std::min(bytes, (4 - place % 4) % 4), words = (bytes - head) / 4 * 4;
    const size_t tail = bytes - head - words;
    if (head != 0) Write(block, offset, kZeros, head);
    if (words != 0) {
      Command(
          [&] {
            Order({{&region, offset + head, words, kWrite}});
            queue_.List()->Clear(region, offset + head, words);
          },
          [&] { return "Clearing " + BytesText(bytes) + " on " + Name(); });
    }
    if (tail != 0) Write(block, offset + head + words, kZeros, tail);
  }

  // Records the time at which all commands so far are done.
  void Mark(VkQueryPool times, uint32_t at) {
    Command(
        [&] {
          if (at == 0) queue_.List()->ResetTimes(times, 2);
          queue_.List()->Time(times, at);
        },
        [&] { return "A marker for " + Name(); });
  }

  // Appends a command buffer that was recorded apart; everything that comes later waits for all of
  // it. `commands`: how many are in it; `note`: () → void, calls Used for each use.
  template <typename Note, typename Text>
  void Append(VkCommandBuffer recorded, size_t commands, Note note, Text text) {
    Command(
        [&] {
          Check(queue_.Append(recorded), text);
          note();
          apart_ = true;
        },
        text, commands);
  }
  // Lends the order of commands to whoever records some apart.
  template <typename Record>
  void Apart(Record record) {
    std::lock_guard<std::mutex> lock(mutex_);
    apart_ = true;
    record(&hazards_);
    hazards_.Clear();
  }

 private:
  void Close() override {
    if (download_ != nullptr) memory_.Free(download_);
    download_ = nullptr;
    hazards_.Clear();
    apart_ = false;
  }

  static constexpr size_t kDownload = size_t{2} << 20;  // bytes read at once, two at a time

  // Orders a command after those that it must come after, and notes what it touches.
  void Order(const Use* uses, size_t count) {
    bool wait = apart_;
    for (size_t i = 0; i < count && !wait; ++i) wait = hazards_.Conflicts(uses[i]);
    if (wait) {
      queue_.List()->Barrier();
      hazards_.Clear();
      apart_ = false;
    }
    for (size_t i = 0; i < count; ++i) {
      hazards_.Touch(uses[i]);
      Used(uses[i]);
    }
  }
  void Order(std::initializer_list<Use> uses) { Order(uses.begin(), uses.size()); }

  // Room for bytes beside the next command. Must come before anything of the command is recorded or
  // noted, as it may submit what there is.
  Scratch* Room(size_t bytes) {
    Scratch* scratch = queue_.Scratch(bytes);
    if (scratch != nullptr) return scratch;
    Check(queue_.Submit(), [&] { return "vkQueueSubmit on " + Name(); });
    return queue_.Scratch(bytes);
  }

  // Whether the host may write a buffer in place, as no command that touches it is under way;
  // with `wait`, makes it so.
  template <typename Text>
  bool IsFree(const Region& root, bool wait, Text text) {
    uint64_t used;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      used = root.used;
    }
    if (used <= queue_.finished()) return true;
    if (wait) {
      WaitFor(used, text);
      return true;
    }
    queue_.Look();
    return used <= queue_.finished();
  }

  // By way of memory that the host reads fast, in two halves: one is filled while the other is
  // emptied.
  template <typename Text>
  void Download(Region* region, size_t offset, char* to, size_t bytes, Text text) {
    std::lock_guard<std::mutex> downloading(download_mutex_);
    if (download_ == nullptr) {
      VkResult result = VK_SUCCESS;
      download_ = memory_.Create(2 * kDownload, MemoryUse::kDownload, &result);
      if (download_ == nullptr) RaiseResult(result, text());
    }
    uint64_t numbers[2] = {0, 0};
    for (size_t done = 0, asked = 0; done < bytes; done += kDownload) {
      for (; asked < bytes && asked < done + 2 * kDownload; asked += kDownload) {
        const size_t now = std::min(bytes - asked, kDownload), half = asked / kDownload % 2;
        Command(
            [&] {
              Order({{region, offset + asked, now, kRead},
                     {download_, half * kDownload, now, kWrite}});
              queue_.List()->Copy(*region, offset + asked, *download_, half * kDownload, now);
              numbers[half] = queue_.number();
            },
            text);
        HandOver(text);
      }
      const size_t half = done / kDownload % 2;
      WaitFor(numbers[half], text);
      std::memcpy(to + done, download_->mapped + half * kDownload,
                  std::min(bytes - done, kDownload));
    }
  }

  Hazards hazards_;
  std::mutex download_mutex_;
  Region* download_ = nullptr;
};

}  // namespace vulkan
}  // namespace bitfabric
