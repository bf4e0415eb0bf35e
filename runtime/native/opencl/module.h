// Device modules: what `fabric compile` wrote, ready to launch.
#pragma once

#include <tvm/ffi/cast.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../module_format.h"
#include "device_api.h"
#include "kernel.h"

namespace bitfabric {
namespace opencl {

class OpenCLModule final : public ffi::ModuleObj {
 public:
  explicit OpenCLModule(ModuleBytes module) : module_(std::move(module)) {
    if (module_.format != "cl") {
      TVM_FFI_THROW(ValueError) << "The OpenCL module has the format " << module_.format
                                << "; only OpenCL C can be loaded.";
    }
    for (size_t i = 0; i < module_.kernels.size(); ++i) index_[module_.kernels[i].key] = i;
    kernels_.resize(module_.kernels.size());
  }

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final {
    return ffi::Module::kBinarySerializable | ffi::Module::kRunnable;
  }
  ffi::String InspectSource(const ffi::String&) const final { return module_.code; }
  ffi::Bytes SaveToBytes() const final { return ffi::Bytes(WriteModule(module_)); }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const auto found = index_.find(name);
    if (found == index_.end()) return std::nullopt;
    Kernel* kernel = KernelAt(found->second);
    // The function keeps the module, and with it the kernel.
    ffi::ObjectPtr<ffi::Object> self = ffi::GetObjectPtr<ffi::Object>(this);
    return ffi::Function::FromPacked([self, kernel](ffi::PackedArgs values, ffi::Any*) {
      Device& device = Devices::Get().At(CurrentDevice());
      kernel->Launch(&device, reinterpret_cast<const TVMFFIAny*>(values.data()),
                     static_cast<size_t>(values.size()));
    });
  }

 private:
  Kernel* KernelAt(size_t index) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (kernels_[index] == nullptr) {
      const KernelInfo& info = module_.kernels[index];
      if (sources_.empty()) sources_ = SplitSource(module_.code);
      const auto source = sources_.find(info.name);
      if (source == sources_.end()) {
        TVM_FFI_THROW(ValueError) << "The OpenCL module lists kernel " << info.name
                                  << " but has no source of it.";
      }
      kernels_[index] = std::make_unique<Kernel>(info, source->second, Devices::Get().size());
    }
    return kernels_[index].get();
  }

  const ModuleBytes module_;
  std::unordered_map<std::string, size_t> index_;
  std::mutex mutex_;
  std::unordered_map<std::string, std::string> sources_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
};

inline ffi::Module LoadModule(const ffi::Bytes& bytes) {
  return ffi::Module(ffi::make_object<OpenCLModule>(ReadModule(bytes.data(), bytes.size())));
}

// What the compiler calls when this backend is loaded into its process.
inline ffi::Module CreateModule(const ffi::Bytes& code, const ffi::String& format,
                         const ffi::Map<ffi::String, ffi::ObjectRef>& kernels,
                         const ffi::Map<ffi::String, ffi::String>&) {
  ModuleBytes module;
  module.format = format;
  module.code = std::string(code.data(), code.size());
  for (const auto& entry : kernels)
    module.kernels.push_back(KernelFromObject(entry.first, entry.second));
  return ffi::Module(ffi::make_object<OpenCLModule>(std::move(module)));
}

}  // namespace opencl
}  // namespace bitfabric
