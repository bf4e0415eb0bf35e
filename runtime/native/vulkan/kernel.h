// A kernel of a module: compiled for a device and a size of its groups when it is first launched
// there, and launched.
#pragma once

#include <tvm/ffi/function.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "device.h"
#include "needs.h"
#include "pipeline.h"
#include "recording.h"

namespace bitfabric {
namespace vulkan {

using KernelCodes = std::unordered_map<std::string, KernelCode>;

class Kernel {
 public:
  // `module`: all kernels of the module, which outlive this one. `devices`: how many there are.
  Kernel(const KernelInfo& kernel, const KernelCode& code, const KernelCodes& module,
         size_t devices)
      : code_(code),
        module_(module),
        arguments_(ArgumentLayout(kernel)),
        launch_(kernel),
        built_(devices) {
    bool same = arguments_.size() == code_.arguments.size();
    for (size_t i = 0; same && i < arguments_.size(); ++i) {
      const KernelCode::Argument& argument = code_.arguments[i];
      const bool buffer = arguments_[i].kind == ArgumentKind::kBuffer;
      same = buffer == argument.buffer &&
             (buffer || uint64_t{argument.place} + arguments_[i].bytes <= code_.block_bytes);
    }
    if (!same) RaiseDamaged(code_.name);
  }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Records the kernel's launch and returns at once. `values`: its arguments, then its extents.
  void Launch(Device* device, const TVMFFIAny* values, size_t count) {
    if (count != arguments_.size() + launch_.size())
      RaiseCount(code_.name, arguments_.size(), launch_.size(), count);
    WorkSize work;
    if (!launch_.Read(values + arguments_.size(), &work)) return;
    unsigned char block[KernelCode::kBlockMost];
    Use uses[KernelCode::kArgumentsMost];
    vulkan::Launch launch{nullptr, {}, block, 0, uses, 0};
    const auto& pipeline = PipelineFor(device, work, &launch);
    launch.pipeline = pipeline.get();
    launch.use_count = Bind(*device, values, work, block, uses);
    device->Run(&launch, [&] { return LaunchText(code_.name, work, device->Name()); });
    if (Recording* const recording = Recording::Of(device))
      recording->Add(code_.name, pipeline, launch);
  }

 private:
  struct Built {
    Specialisation special;
    std::shared_ptr<const Pipeline> pipeline;
    Built* next;
  };

  // The pipelines of a device: a list that only grows, so that it is read without a lock.
  struct OnDevice {
    std::atomic<Built*> first{nullptr};
    std::mutex building;

    ~OnDevice() {
      for (Built* built = first; built != nullptr;) {
        Built* const next = built->next;
        delete built;
        built = next;
      }
    }
    // `made`: which logical device it must be of.
    const std::shared_ptr<const Pipeline>* Find(const Specialisation& special,
                                                uint64_t made) const {
      for (Built* built = first.load(std::memory_order_acquire); built != nullptr;
           built = built->next)
        if (built->special == special && built->pipeline->made_on == made)
          return &built->pipeline;
      return nullptr;
    }
  };

  // The pipeline for groups of this size and, in `launch`, how many of them along each axis.
  const std::shared_ptr<const Pipeline>& PipelineFor(Device* device, const WorkSize& work,
                                              vulkan::Launch* launch) {
    Specialisation special{{}, 0};
    for (int i = 0; i < 3; ++i) {
      special.threads[i] = static_cast<uint32_t>(work.threads[i]);
      launch->groups[i] = static_cast<uint32_t>(work.groups[i]);
      if (work.groups[i] > device->info.max_groups[i]) special.folded = 1;
    }
    if (special.folded != 0) Fold(*device, work, launch->groups);
    OnDevice& here = built_[static_cast<size_t>(device->index)];
    if (const auto* found = here.Find(special, device->made())) return *found;
    // Nobody waits for a compilation but who needs its result, or compiles the same kernel.
    std::lock_guard<std::mutex> lock(here.building);
    if (const auto* found = here.Find(special, device->made())) return *found;
    CheckGroup(*device, work);
    for (const auto& [name, code] : module_) CheckNeeds(*device, code);
    CheckEnabled(*device, code_.name, module_);
    auto* const built = new Built{special, nullptr, here.first.load(std::memory_order_relaxed)};
    try {
      built->pipeline = PipelineBuilder(device).Build(code_, special);
    } catch (...) {
      delete built;
      throw;
    }
    here.first.store(built, std::memory_order_release);
    return built->pipeline;
  }

  // Lays the groups of a grid along all three axes: the kernel counts them, and finds by the count
  // which of the grid's each is.
  void Fold(const Device& device, const WorkSize& work, uint32_t (&groups)[3]) const {
    const std::vector<size_t>& most = device.info.max_groups;
    uint64_t all = 1;
    for (size_t extent : work.groups) all = extent > INT32_MAX / all ? UINT64_MAX : all * extent;
    const uint64_t x = std::min<uint64_t>(all, most[0]), rows = (all - 1) / x + 1;
    const uint64_t y = std::min<uint64_t>(rows, most[1]), z = (rows - 1) / y + 1;
    if (!code_.foldable || all == UINT64_MAX || z > most[2]) {
      Raise("Vulkan", Trouble::kError,
            LaunchText(code_.name, work, device.Name()) + " failed: " +
                std::to_string(most[0]) + "x" + std::to_string(most[1]) + "x" +
                std::to_string(most[2]) + " groups are the most there.");
    }
    groups[0] = static_cast<uint32_t>(x);
    groups[1] = static_cast<uint32_t>(y);
    groups[2] = static_cast<uint32_t>(z);
  }

  void CheckGroup(const Device& device, const WorkSize& work) const {
    const DeviceInfo& info = device.info;
    bool fits = true;
    uint64_t all = 1;
    for (int i = 0; i < 3; ++i) {
      fits = fits && work.threads[i] <= info.max_thread_dimensions[i];
      all *= fits ? work.threads[i] : 1;
    }
    if (fits && all <= info.max_threads) return;
    Raise("Vulkan", Trouble::kError,
          LaunchText(code_.name, work, device.Name()) + " failed: a group may have " +
              std::to_string(info.max_threads) + " threads there.");
  }

  // Writes the block of arguments, lists the buffers, and returns how many there are.
  size_t Bind(const Device& device, const TVMFFIAny* values, const WorkSize& work,
              unsigned char* block, Use* uses) const {
    size_t count = 0;
    std::memset(block, 0, code_.block_bytes);
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const KernelCode::Argument& argument = code_.arguments[i];
      if (argument.buffer) {
        const Block* const memory = BufferArgument(values[i], code_.name, i);
        if (memory == nullptr && !code_.descriptors) continue;  // the address stays zero
        CheckBuffer(device, memory, i);
        Region& region = RegionOf(*memory);
        uses[count++] = {&region, 0, region.size, argument.access};
        if (code_.descriptors) {
          // What the pool gave beyond what was asked for may be beyond what a descriptor names.
          uses[count - 1].bytes = std::min(region.size, device.info.max_storage_range);
          continue;
        }
        const VkDeviceAddress address = region.address();
        std::memcpy(block + argument.place, &address, sizeof address);
      } else {
        const uint64_t value = ScalarArgument(values[i], arguments_[i].kind);
        std::memcpy(block + argument.place, &value, arguments_[i].bytes);
      }
    }
    if (code_.foldable) {
      for (size_t i = 0; i < 3; ++i) {
        const uint32_t extent = static_cast<uint32_t>(work.groups[i]);
        std::memcpy(block + code_.grid_offset + 4 * i, &extent, sizeof extent);
      }
    }
    return count;
  }

  void CheckBuffer(const Device& device, const Block* memory, size_t at) const {
    if (memory != nullptr && memory->device != device.index)
      RaiseForeign("Vulkan", code_.name, device.Name(), at, *memory);
    if (!code_.descriptors) return;
    const size_t bytes = memory == nullptr ? 0 : memory->asked != 0 ? memory->asked : memory->size;
    if (memory != nullptr && bytes <= device.info.max_storage_range) return;
    Raise("Vulkan", Trouble::kError,
          "Kernel " + code_.name + " takes " + BytesText(bytes) + " as argument " +
              std::to_string(at) + ", but a descriptor of " + device.Name() +
              " can name at least one byte and at most " +
              BytesText(device.info.max_storage_range) + ".");
  }

  const KernelCode& code_;
  const KernelCodes& module_;
  const std::vector<ArgumentSlot> arguments_;
  const LaunchLayout launch_;
  std::vector<OnDevice> built_;
};

}  // namespace vulkan
}  // namespace bitfabric
