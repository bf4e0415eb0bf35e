// The code objects of a module, by architecture, and the one that is loaded on each device.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../binary_cache.h"
#include "../module_format.h"
#include "device.h"
#include "kernel.h"

namespace bitfabric {
namespace hip {

inline ProgramCounts& CountedPrograms() {
  static ProgramCounts counts;
  return counts;
}

// Reads Clang's offload bundle: a magic, a count, and for each entry offset, size and name.
inline std::map<std::string, std::string> CodeObjects(const std::string& bundle) {
  static const std::string kMagic = "__CLANG_OFFLOAD_BUNDLE__", kPrefix = "hipv4-amdgcn-amd-amdhsa--";
  ByteReader reader(bundle.data(), bundle.size());
  if (bundle.compare(0, kMagic.size(), kMagic) != 0)
    TVM_FFI_THROW(ValueError) << "The ROCm module's code is no bundle of code objects.";
  for (size_t i = 0; i < kMagic.size(); ++i) reader.Number<char>();
  std::map<std::string, std::string> found;
  for (size_t n = reader.Count(24); n > 0; --n) {
    const uint64_t offset = reader.Number<uint64_t>(), size = reader.Number<uint64_t>();
    const std::string name = reader.Text();
    if (offset > bundle.size() || size > bundle.size() - offset)
      TVM_FFI_THROW(ValueError) << "The ROCm module's code is truncated or damaged.";
    if (name.compare(0, kPrefix.size(), kPrefix) == 0)
      found[name.substr(kPrefix.size())] = bundle.substr(offset, size);
  }
  return found;
}

class Code final : public ModuleSource {
 public:
  explicit Code(const ModuleBytes& module) : objects_(CodeObjects(module.code)) {}
  ~Code() {
    for (Loaded& loaded : loaded_)
      if (loaded.module != nullptr) Api::Get().hipModuleUnload(loaded.module);
  }

  // Names the architectures: the code itself is no text.
  std::string Source() const { return "; code objects for " + Names() + "\n"; }

  std::unique_ptr<Kernel> Make(const KernelInfo& info, size_t devices) {
    return std::make_unique<Kernel>(info, this, devices);
  }

  // ModuleSource
  Handle On(Device* device) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (loaded_.size() <= static_cast<size_t>(device->index))
      loaded_.resize(static_cast<size_t>(device->index) + 1);
    Loaded& loaded = loaded_[static_cast<size_t>(device->index)];
    if (loaded.module == nullptr) loaded.module = Load(device);
    return loaded.module;
  }

 private:
  struct Loaded {
    Handle module = nullptr;
  };

  std::string Names() const {
    std::string names;
    for (const auto& entry : objects_) names += (names.empty() ? "" : ", ") + entry.first;
    return names;
  }

  Handle Load(Device* device) const {
    const std::string& full = device->info.architecture;
    const auto object = objects_.find(full.substr(0, full.find(':')));
    if (object == objects_.end()) {
      Raise("ROCm", Trouble::kError,
            device->Name() + " is " + full + ", and the module has code for " + Names() + ".");
    }
    device->Open();
    device->Choose();
    Handle module = nullptr;
    const Status status = Api::Get().hipModuleLoadData(&module, object->second.data());
    Device::Check(status, [&] {
      return "hipModuleLoadData of " + BytesText(object->second.size()) + " on " + device->Name();
    });
    ++CountedPrograms().loaded;
    return module;
  }

  const std::map<std::string, std::string> objects_;
  std::mutex mutex_;
  std::vector<Loaded> loaded_;  // one a device
};

}  // namespace hip
}  // namespace bitfabric
