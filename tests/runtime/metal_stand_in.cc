// Stands in for what only a Mac has, so that a bundle for Metal runs on any processor: Apple's
// functions that describe devices, and TVM's runtime library for Metal. As over there, a buffer is
// an object and no address, a kernel takes whole buffers, and scalars are packed by eight bytes.
// Kernels are compiled by a function that the test registers, bitfabric.test.compile_kernel.

#include <dlfcn.h>
#include <tvm/ffi/cast.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "module_format.h"

namespace {

using bitfabric::ByteReader;
using bitfabric::KernelInfo;
namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAPI;
using tvm::runtime::DeviceAttrKind;

constexpr int kThreads = 1024;
constexpr uint64_t kMark = 0x6c6174656d;
size_t allocated = 0;

struct Buffer {
  explicit Buffer(size_t bytes) : bytes(bytes), words(bytes / 16 + 1) { allocated += bytes; }
  ~Buffer() {
    mark = 0;
    allocated -= bytes;
  }
  char* data() { return reinterpret_cast<char*>(words.data()); }
  // Whoever takes the object for an address, or for one that is gone, is found out.
  static Buffer* Of(const void* handle) {
    auto* buffer = static_cast<Buffer*>(const_cast<void*>(handle));
    if (buffer == nullptr || buffer->mark != kMark) TVM_FFI_THROW(RuntimeError) << "no buffer";
    return buffer;
  }
  struct alignas(16) Word {
    char byte[16];
  };
  uint64_t mark = kMark;
  size_t bytes;
  std::vector<Word> words;
};

class MetalApi final : public DeviceAPI {
 public:
  static MetalApi* Get() {
    static MetalApi* const api = new MetalApi();
    return api;
  }
  void SetDevice(DLDevice device) final {
    if (device.device_id != 0) TVM_FFI_THROW(RuntimeError) << "Invalid Metal device_id";
  }
  void GetAttr(DLDevice device, DeviceAttrKind kind, ffi::Any* value) final {
    if (kind == tvm::runtime::kExist) *value = static_cast<int>(device.device_id == 0);
    if (kind == tvm::runtime::kMaxThreadsPerBlock) *value = kThreads;
  }
  void* AllocDataSpace(DLDevice, size_t bytes, size_t, DLDataType) final {
    return new Buffer(bytes);
  }
  void FreeDataSpace(DLDevice, void* handle) final { delete Buffer::Of(handle); }
  void StreamSync(DLDevice, TVMStreamHandle) final {}

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset,
                      size_t bytes, DLDevice from_device, DLDevice to_device, DLDataType,
                      TVMStreamHandle) final {
    std::memmove(Place(to, to_offset, bytes, to_device), Place(from, from_offset, bytes, from_device),
                 bytes);
  }

 private:
  static char* Place(const void* handle, size_t offset, size_t bytes, DLDevice device) {
    if (device.device_type == kDLCPU)
      return static_cast<char*>(const_cast<void*>(handle)) + offset;
    Buffer* buffer = Buffer::Of(handle);
    if (offset + bytes > buffer->bytes) TVM_FFI_THROW(RuntimeError) << "beyond the buffer";
    return buffer->data() + offset;
  }
};

using Run = void (*)(char**, const char*, const unsigned*, const unsigned*);

class MetalModule final : public ffi::ModuleObj {
 public:
  explicit MetalModule(const ffi::Bytes& bytes) {
    ByteReader reader(bytes.data(), bytes.size());
    if (reader.Text() != "metal") TVM_FFI_THROW(ValueError) << "another format";
    for (size_t n = reader.Count(40); n > 0; --n) {
      KernelInfo kernel = bitfabric::ReadKernel(&reader);
      kernels_[kernel.key] = kernel;
    }
    for (size_t n = reader.Count(16); n > 0; --n) {
      std::string name = reader.Text();
      sources_[name] = reader.Text();
    }
    if (reader.left() != 0) TVM_FFI_THROW(ValueError) << "too many bytes";
  }
  const char* kind() const final { return "metal"; }
  int GetPropertyMask() const final { return ffi::Module::kRunnable; }
  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    if (kernels_.count(name) == 0) return std::nullopt;
    KernelInfo info = kernels_[name];
    auto self = ffi::GetObjectPtr<ffi::Object>(this);
    return ffi::Function::FromPacked([this, self, info](ffi::PackedArgs values, ffi::Any*) {
      Launch(info, reinterpret_cast<const TVMFFIAny*>(values.data()), values.size());
    });
  }

 private:
  void Launch(const KernelInfo& info, const TVMFFIAny* values, int count) {
    std::vector<char*> buffers;
    std::vector<int64_t> scalars;
    for (size_t i = 0; i < info.arguments.size(); ++i) {
      if (info.arguments[i].code == kDLOpaqueHandle) {
        if (!scalars.empty()) TVM_FFI_THROW(ValueError) << "a buffer after a scalar";
        buffers.push_back(Buffer::Of(values[i].v_ptr)->data());
      } else {
        scalars.push_back(values[i].v_int64);
      }
    }
    unsigned sizes[6] = {1, 1, 1, 1, 1, 1};
    const int first = static_cast<int>(info.arguments.size());
    if (count != first + static_cast<int>(info.launch_tags.size()))
      TVM_FFI_THROW(ValueError) << "another number of arguments";
    for (size_t i = 0; i < info.launch_tags.size(); ++i) {
      const std::string& tag = info.launch_tags[i];
      sizes[(tag.compare(0, 6, "thread") == 0 ? 3 : 0) + tag.back() - 'x'] =
          static_cast<unsigned>(values[first + i].v_int64);
    }
    if (sizes[3] * sizes[4] * sizes[5] > kThreads) TVM_FFI_THROW(ValueError) << "too many threads";
    Compiled(info.name)(buffers.data(), reinterpret_cast<const char*>(scalars.data()), sizes,
                        sizes + 3);
  }
  Run Compiled(const std::string& name) {
    Run& run = runs_[name];
    if (run == nullptr) {
      auto compile = ffi::Function::GetGlobalRequired("bitfabric.test.compile_kernel");
      std::string path = compile(ffi::String(sources_.at(name))).cast<ffi::String>();
      void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library == nullptr) TVM_FFI_THROW(RuntimeError) << dlerror();
      run = reinterpret_cast<Run>(dlsym(library, ("run_" + name).c_str()));
    }
    return run;
  }

  std::map<std::string, KernelInfo> kernels_;
  std::map<std::string, std::string> sources_;
  std::map<std::string, Run> runs_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  ffi::reflection::GlobalDef()
      .def("device_api.metal",
           []() { return static_cast<void*>(static_cast<DeviceAPI*>(MetalApi::Get())); })
      .def("ffi.Module.load_from_bytes.metal", [](const ffi::Bytes& bytes) {
        return ffi::Module(ffi::make_object<MetalModule>(bytes));
      });
}

const char kName[] = "Apple M2 Pro";

}  // namespace

extern "C" {

const char* sel_registerName(const char* name) {
  static std::set<std::string> names;
  return names.insert(name).first->c_str();
}
const void* MTLCopyAllDevices() { return "the list"; }
uint64_t objc_msgSend(const void* receiver, const char* name, uint64_t argument) {
  const std::string message = name;
  if (message == "count") return 1;
  if (message == "objectAtIndex:") return reinterpret_cast<uint64_t>("the device");
  if (message == "name") return reinterpret_cast<uint64_t>(kName);
  if (message == "UTF8String") return reinterpret_cast<uint64_t>(receiver);
  if (message == "supportsFamily:") return argument <= 1008;
  if (message == "hasUnifiedMemory") return 1;
  if (message == "recommendedMaxWorkingSetSize") return uint64_t{12} << 30;
  if (message == "maxBufferLength") return uint64_t{9} << 30;
  if (message == "maxThreadgroupMemoryLength") return 32768;
  if (message == "currentAllocatedSize") return allocated;
  std::abort();
}
}
