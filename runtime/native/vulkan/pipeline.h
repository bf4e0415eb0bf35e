// From a kernel's SPIR-V to a pipeline: compiled by the driver, or taken from the disk.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../binary_cache.h"
#include "container.h"
#include "device.h"

namespace bitfabric {
namespace vulkan {

inline ProgramCounts& CountedPrograms() {
  static ProgramCounts counts;
  return counts;
}

// What a kernel is made for: constants 0 to 2 are the size of a group; constant 3 tells that the
// grid is folded, as it has more groups along an axis than the device takes.
struct Specialisation {
  uint32_t threads[3];
  uint32_t folded;

  bool operator==(const Specialisation& other) const {
    return std::memcmp(this, &other, sizeof *this) == 0;
  }
};

class PipelineBuilder {
 public:
  explicit PipelineBuilder(Device* device)
      : device_(device), vk_(device->functions()), cache_("vulkan") {}

  // The pipeline lives until the last launch and the last recording let go of it.
  std::shared_ptr<const Pipeline> Build(const KernelCode& kernel,
                                        const Specialisation& special) const {
    const auto stay = device_->inhabitants().Stay();
    std::unique_ptr<Pipeline, Ending> pipeline(new Pipeline(), Ending{device_});
    pipeline->made_on = device_->made();
    pipeline->spilled = kernel.spilled;
    pipeline->block_bytes = kernel.block_bytes;
    for (const KernelCode::Argument& argument : kernel.arguments)
      if (argument.buffer && kernel.descriptors) pipeline->bindings.push_back(argument.place);
    MakeLayout(kernel, pipeline.get());
    Compile(kernel, special, pipeline.get());
    device_->inhabitants().Enter(pipeline.get());
    Device* const device = device_;
    return std::shared_ptr<Pipeline>(pipeline.release(), [device](Pipeline* ended) {
      device->Settle();
      const auto there = device->inhabitants().Stay();
      if (device->inhabitants().Leave(ended)) Ending{device}(ended);
      else delete ended;
    });
  }

 private:
  // Ends a pipeline on its own device.
  struct Ending {
    Device* device;
    void operator()(Pipeline* ended) const {
      if (!Api::Retired()) DestroyPipeline(device->handle(), device->functions(), *ended);
      delete ended;
    }
  };

  void MakeLayout(const KernelCode& kernel, Pipeline* pipeline) const {
    if (kernel.descriptors) {
      std::vector<VkDescriptorSetLayoutBinding> bindings;
      for (uint32_t binding : pipeline->bindings)
        bindings.push_back({binding, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1,
                            VK_SHADER_STAGE_COMPUTE_BIT, nullptr});
      VkDescriptorSetLayoutCreateInfo set;
      set.bindingCount = static_cast<uint32_t>(bindings.size());
      set.pBindings = bindings.data();
      Check(vk_.vkCreateDescriptorSetLayout(device_->handle(), &set, nullptr, &pipeline->set),
            [&] { return "vkCreateDescriptorSetLayout for kernel " + kernel.name; });
    }
    const uint32_t pushed = kernel.spilled ? sizeof(VkDeviceAddress) : kernel.block_bytes;
    const VkPushConstantRange range{VK_SHADER_STAGE_COMPUTE_BIT, 0, pushed};
    VkPipelineLayoutCreateInfo layout;
    layout.setLayoutCount = pipeline->set != 0 ? 1 : 0;
    layout.pSetLayouts = &pipeline->set;
    layout.pushConstantRangeCount = pushed != 0 ? 1 : 0;
    layout.pPushConstantRanges = &range;
    Check(vk_.vkCreatePipelineLayout(device_->handle(), &layout, nullptr, &pipeline->layout),
          [&] { return "vkCreatePipelineLayout for kernel " + kernel.name; });
  }

  void Compile(const KernelCode& kernel, const Specialisation& special, Pipeline* pipeline) const {
    const std::string key = Key(kernel, special);
    const std::string known = Known(cache_.Load(key));
    VkPipelineCacheCreateInfo create;
    create.initialDataSize = known.size();
    create.pInitialData = known.data();
    VkPipelineCache compiled = 0;
    Check(vk_.vkCreatePipelineCache(device_->handle(), &create, nullptr, &compiled),
          [&] { return "vkCreatePipelineCache for kernel " + kernel.name; });
    const VkResult result = Create(kernel, special, compiled, pipeline);
    const std::string data = result == VK_SUCCESS ? DataOf(compiled) : "";
    vk_.vkDestroyPipelineCache(device_->handle(), compiled, nullptr);
    Check(result, [&] { return "Compiling kernel " + kernel.name + " for " + device_->Name(); });
    // What the driver took from the disk comes back as it was; what it had to compile is more.
    if (!known.empty() && known == data) {
      ++CountedPrograms().loaded;
      return;
    }
    ++CountedPrograms().compiled;
    cache_.Store(key, data);
  }

  VkResult Create(const KernelCode& kernel, const Specialisation& special, VkPipelineCache cache,
                  Pipeline* pipeline) const {
    VkShaderModuleCreateInfo code;
    code.codeSize = kernel.spirv.size() * sizeof(uint32_t);
    code.pCode = kernel.spirv.data();
    VkComputePipelineCreateInfo create;
    create.layout = pipeline->layout;
    VkPipelineShaderStageCreateInfo& stage = create.stage;
    const VkResult result =
        vk_.vkCreateShaderModule(device_->handle(), &code, nullptr, &stage.module);
    if (result != VK_SUCCESS) return result;
    static const VkSpecializationMapEntry kEntries[] = {
        {0, 0, 4}, {1, 4, 4}, {2, 8, 4}, {3, 12, 4}};
    const VkSpecializationInfo constants{4, kEntries, sizeof special, &special};
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size;
    size.requiredSubgroupSize = kernel.subgroup_size;
    if (kernel.subgroup_size != 0) stage.pNext = &size;
    if (WantsFullSubgroups(kernel, special))
      stage.flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
    stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
    stage.pName = kernel.entry.c_str();
    stage.pSpecializationInfo = &constants;
    const VkResult made = vk_.vkCreateComputePipelines(device_->handle(), cache, 1, &create,
                                                       nullptr, &pipeline->handle);
    vk_.vkDestroyShaderModule(device_->handle(), stage.module, nullptr);
    return made;
  }

  // Full subgroups can be asked for only where whole ones fit along x.
  bool WantsFullSubgroups(const KernelCode& kernel, const Specialisation& special) const {
    const size_t size =
        kernel.subgroup_size != 0 ? kernel.subgroup_size : device_->info.subgroup_sizes[1];
    for (const std::string& feature : kernel.features)
      if (feature == "computeFullSubgroups") return special.threads[0] % size == 0;
    return false;
  }

  // What is compiled, for which driver.
  std::string Key(const KernelCode& kernel, const Specialisation& special) const {
    const DeviceInfo& info = device_->info;
    std::string key = info.name + '\n' + info.driver + '\n';
    auto add = [&key](const void* data, size_t bytes) {
      key.append(static_cast<const char*>(data), bytes);
    };
    for (uint32_t number : {info.vendor_id, info.device_id, info.driver_id, info.api,
                            kernel.subgroup_size, kernel.block_bytes,
                            static_cast<uint32_t>(kernel.descriptors),
                            static_cast<uint32_t>(kernel.spilled)})
      add(&number, sizeof number);
    add(info.cache_id.data(), info.cache_id.size());
    add(&special, sizeof special);
    for (const std::string& feature : kernel.features) key += feature + '\n';
    add(kernel.spirv.data(), kernel.spirv.size() * sizeof(uint32_t));
    return key;
  }

  // The data where its header is this driver's; empty otherwise. Drivers must check that too, and
  // not all do.
  std::string Known(const std::string& data) const {
    VkPipelineCacheHeaderVersionOne header;
    if (data.size() < sizeof header) return {};
    std::memcpy(&header, data.data(), sizeof header);
    const DeviceInfo& info = device_->info;
    const bool own = header.headerVersion == 1 && header.headerSize >= sizeof header &&
                     header.headerSize <= data.size() && header.vendorID == info.vendor_id &&
                     header.deviceID == info.device_id &&
                     std::memcmp(header.pipelineCacheUUID, info.cache_id.data(), 16) == 0;
    return own ? data : std::string();
  }

  std::string DataOf(VkPipelineCache cache) const {
    size_t bytes = 0;
    if (vk_.vkGetPipelineCacheData(device_->handle(), cache, &bytes, nullptr) != VK_SUCCESS)
      return {};
    std::string data(bytes, '\0');
    if (vk_.vkGetPipelineCacheData(device_->handle(), cache, &bytes, &data[0]) != VK_SUCCESS)
      return {};
    data.resize(bytes);
    return data;
  }

  Device* device_;
  const DeviceFunctions& vk_;
  BinaryCache cache_;
};

}  // namespace vulkan
}  // namespace bitfabric
