// A recording's launches in command buffers of its own, with their barriers: replaying hands them
// over.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../recording.h"
#include "device.h"
#include "times.h"

namespace bitfabric {
namespace vulkan {

class Recording final : public RecordingOf<Recording, Device> {
 public:
  explicit Recording(std::shared_ptr<RecordedMemory<Device>> memory)
      : RecordingOf(std::move(memory)) {
    const auto stay = device_->inhabitants().Stay();
    device_->inhabitants().Enter();
  }
  ~Recording() {
    device_->Settle();
    if (blocks_memory_ != nullptr) device_->memory().Free(blocks_memory_);
    lists_.reset();
    device_->inhabitants().Leave();
  }

  // Takes a launch, and a share in its pipeline.
  void Add(const std::string& name, std::shared_ptr<const Pipeline> pipeline,
           const Launch& launch) {
    kernels_.push_back({name, std::move(pipeline), launch, blocks_.size(), uses_.size()});
    blocks_.insert(blocks_.end(), launch.block, launch.block + launch.pipeline->block_bytes);
    // Of the roots: a view may end before the recording.
    for (size_t i = 0; i < launch.use_count; ++i) {
      const Use& use = launch.uses[i];
      uses_.push_back({use.region->root, use.begin(), use.bytes, use.access});
    }
  }

  // False where the call can't be replayed.
  bool End() {
    if (!Stop(kernels_.size())) return false;
    // What the kernels point to has stopped moving.
    for (Kernel& kernel : kernels_) {
      kernel.launch.block = blocks_.data() + kernel.block;
      kernel.launch.uses = uses_.data() + kernel.use;
    }
    StoreSpilled();
    lists_ = std::make_unique<Lists>(device_);
    Write(lists_.get(), VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT, nullptr);
    return true;
  }

  void Replay() { Submit(*lists_); }

  // Replays once and returns each kernel's name and nanoseconds on the device, as JSON.
  std::string Profile() {
    if (device_->info.tick_bits == 0) {
      Raise("Vulkan", Trouble::kError,
            device_->Name() + " has no clock to time its kernels by.");
    }
    std::vector<std::unique_ptr<Times>> times;
    for (size_t begin = 0; begin < kernels_.size(); begin += kLaunches)
      times.push_back(std::make_unique<Times>(device_, CountFrom(begin) + 1));
    Lists lists(device_);
    Write(&lists, VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT, &times);
    Submit(lists);
    device_->Wait();
    std::string json = "[";
    size_t at = 0;
    for (const auto& part : times) {
      for (uint64_t nanoseconds : part->Differences()) {
        json += (at == 0 ? "[\"" : ", [\"") + kernels_[at].name + "\", " +
                std::to_string(nanoseconds) + "]";
        ++at;
      }
    }
    return json + "]";
  }

 private:
  // Launches of a command buffer. A device begins with the first of several while the host hands
  // over the next, and systems that stop a submission which takes long see shorter ones.
  static constexpr size_t kLaunches = 256;

  struct Kernel {
    std::string name;
    std::shared_ptr<const Pipeline> pipeline;
    Launch launch;
    size_t block, use;  // where its own begin
  };

  // Command buffers with what they need.
  struct Lists {
    explicit Lists(Device* of) : device(of), pool(of->queue().NewPool(0)) {
      descriptors.Open(of->handle(), &of->functions());
    }
    ~Lists() {
      device->Settle();
      if (Api::Retired()) return;
      descriptors.Destroy();
      device->functions().vkDestroyCommandPool(device->handle(), pool, nullptr);
    }
    Lists(const Lists&) = delete;
    Lists& operator=(const Lists&) = delete;

    Device* const device;
    const VkCommandPool pool;
    Descriptors descriptors;
    std::vector<VkCommandBuffer> buffers;
  };

  uint32_t CountFrom(size_t begin) const {
    return static_cast<uint32_t>(std::min(kernels_.size() - begin, kLaunches));
  }

  // Blocks that lie in memory get their places there for good.
  void StoreSpilled() {
    size_t bytes = 0;
    for (const Kernel& kernel : kernels_)
      if (kernel.pipeline->spilled) bytes += Scratch::Rounded(kernel.pipeline->block_bytes);
    if (bytes == 0) return;
    VkResult result = VK_SUCCESS;
    blocks_memory_ = device_->memory().Create(bytes, MemoryUse::kUpload, &result);
    Check(result, [&] { return "Memory for a recording on " + device_->Name(); });
    Scratch scratch(blocks_memory_);
    for (Kernel& kernel : kernels_) {
      if (kernel.pipeline->spilled)
        kernel.launch.stored = scratch.Copy(kernel.launch.block, kernel.pipeline->block_bytes);
    }
  }

  // Records the launches, with their times where they are asked for.
  void Write(Lists* lists, VkFlags usage, const std::vector<std::unique_ptr<Times>>* times) {
    auto checked = [&](VkResult result) {
      Check(result, [&] { return "Recording commands for " + device_->Name(); });
    };
    device_->Apart([&](Hazards* hazards) {
      for (size_t begin = 0; begin < kernels_.size(); begin += kLaunches) {
        lists->buffers.push_back(device_->queue().NewBuffer(lists->pool));
        CommandList list(device_->handle(), &device_->functions(), lists->buffers.back());
        checked(list.Begin(usage));
        const uint32_t count = CountFrom(begin);
        const VkQueryPool clock = times != nullptr ? (*times)[begin / kLaunches]->pool() : 0;
        if (clock != 0) list.ResetTimes(clock, count + 1);
        // What came before the recording, whatever it is, comes before it all.
        list.Barrier();
        hazards->Clear();
        for (uint32_t i = 0; i < count; ++i) {
          const Launch& launch = kernels_[begin + i].launch;
          if (clock != 0) {
            list.Time(clock, i);
          } else if (Conflicts(*hazards, launch)) {
            list.Barrier();
            hazards->Clear();
          }
          Touch(hazards, launch);
          list.Run(launch, &lists->descriptors);
        }
        if (clock != 0) list.Time(clock, count);
        checked(list.End());
      }
    });
  }

  static bool Conflicts(const Hazards& hazards, const Launch& launch) {
    for (size_t i = 0; i < launch.use_count; ++i)
      if (hazards.Conflicts(launch.uses[i])) return true;
    return false;
  }
  static void Touch(Hazards* hazards, const Launch& launch) {
    for (size_t i = 0; i < launch.use_count; ++i) hazards->Touch(launch.uses[i]);
  }

  void Submit(const Lists& lists) {
    for (size_t i = 0; i < lists.buffers.size(); ++i) {
      const uint32_t count = CountFrom(i * kLaunches);
      device_->Append(
          lists.buffers[i], count,
          [&] {
            for (uint32_t k = 0; k < count; ++k) {
              const Launch& launch = kernels_[i * kLaunches + k].launch;
              for (size_t u = 0; u < launch.use_count; ++u) device_->Used(launch.uses[u]);
            }
          },
          [&] { return "Launching recorded kernels on " + device_->Name(); });
    }
  }

  std::vector<Kernel> kernels_;
  std::vector<unsigned char> blocks_;
  std::vector<Use> uses_;
  Region* blocks_memory_ = nullptr;  // of spilled blocks
  std::unique_ptr<Lists> lists_;
};

}  // namespace vulkan
}  // namespace bitfabric
