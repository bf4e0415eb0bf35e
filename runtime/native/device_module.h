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

#include "device_api.h"
#include "module_format.h"

namespace bitfabric {

// `Backend` names an API's parts: see registration.h.
template <typename Backend>
class DeviceModule final : public ffi::ModuleObj {
 public:
  explicit DeviceModule(ModuleBytes module) : module_(Checked(std::move(module))), code_(module_) {
    for (size_t i = 0; i < module_.kernels.size(); ++i) index_[module_.kernels[i].key] = i;
    kernels_.resize(module_.kernels.size());
  }

  const char* kind() const final { return Backend::kModule; }
  int GetPropertyMask() const final {
    return ffi::Module::kBinarySerializable | ffi::Module::kRunnable;
  }
  ffi::String InspectSource(const ffi::String&) const final { return code_.Source(); }
  ffi::Bytes SaveToBytes() const final { return ffi::Bytes(WriteModule(module_)); }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    const auto found = index_.find(name);
    if (found == index_.end()) return std::nullopt;
    typename Backend::Kernel* kernel = KernelAt(found->second);
    // The function keeps the module, and with it the kernel.
    ffi::ObjectPtr<ffi::Object> self = ffi::GetObjectPtr<ffi::Object>(this);
    return ffi::Function::FromPacked([self, kernel](ffi::PackedArgs values, ffi::Any*) {
      auto& device = Backend::Devices::Get().At(DeviceApi<Backend>::Current());
      kernel->Launch(&device, reinterpret_cast<const TVMFFIAny*>(values.data()),
                     static_cast<size_t>(values.size()));
    });
  }

 private:
  static ModuleBytes Checked(ModuleBytes module) {
    if (module.format != Backend::kFormat) {
      TVM_FFI_THROW(ValueError) << "The " << Backend::kName << " module has the format "
                                << module.format << "; only " << Backend::kFormat
                                << " can be loaded.";
    }
    return module;
  }

  typename Backend::Kernel* KernelAt(size_t index) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (kernels_[index] == nullptr)
      kernels_[index] = code_.Make(module_.kernels[index], Backend::Devices::Get().size());
    return kernels_[index].get();
  }

  const ModuleBytes module_;
  typename Backend::Code code_;
  std::unordered_map<std::string, size_t> index_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<typename Backend::Kernel>> kernels_;
};

template <typename Backend>
ffi::Module LoadModule(const ffi::Bytes& bytes) {
  return ffi::Module(
      ffi::make_object<DeviceModule<Backend>>(ReadModule(bytes.data(), bytes.size())));
}

// What the compiler calls when this backend is loaded into its process.
template <typename Backend>
ffi::Module CreateModule(const ffi::Bytes& code, const ffi::String& format,
                         const ffi::Map<ffi::String, ffi::ObjectRef>& kernels,
                         const ffi::Map<ffi::String, ffi::String>&) {
  ModuleBytes module;
  module.format = format;
  module.code = std::string(code.data(), code.size());
  for (const auto& entry : kernels)
    module.kernels.push_back(KernelFromObject(entry.first, entry.second));
  return ffi::Module(ffi::make_object<DeviceModule<Backend>>(std::move(module)));
}

}  // namespace bitfabric
