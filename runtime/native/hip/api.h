// HIP's C interface, as much of it as is used, taken from ROCm's library when it is first asked
// for. Declared here rather than included: neither headers nor a library have to be installed to
// build this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../driver.h"

namespace bitfabric {
namespace hip {

using Status = int;
// Streams, events, modules and functions are pointers that only the library looks into; memory is
// an address of the device.
using Handle = void*;
using Address = void*;

enum : unsigned {
  kStreamNonBlocking = 1,
  kEventDefault = 0,
  kEventDisableTiming = 2,
};

// A launch's arguments as one block of memory: these words announce it, its size and the end.
inline void* LaunchWord(uintptr_t word) { return reinterpret_cast<void*>(word); }
constexpr uintptr_t kLaunchBuffer = 1, kLaunchSize = 2, kLaunchEnd = 3;

// clang-format off
#define BITFABRIC_HIP_FUNCTIONS(X)                                                                \
  X(hipInit, Status, unsigned)                                                                    \
  X(hipGetErrorName, const char*, Status)                                                         \
  X(hipGetDeviceCount, Status, int*)                                                              \
  X(hipGetDevicePropertiesR0600, Status, void*, int)                                              \
  X(hipRuntimeGetVersion, Status, int*)                                                           \
  X(hipSetDevice, Status, int)                                                                    \
  X(hipStreamCreateWithFlags, Status, Handle*, unsigned)                                          \
  X(hipStreamSynchronize, Status, Handle)                                                         \
  X(hipMalloc, Status, Address*, size_t)                                                          \
  X(hipFree, Status, Address)                                                                     \
  X(hipMemcpyHtoDAsync, Status, Address, const void*, size_t, Handle)                             \
  X(hipMemcpyDtoHAsync, Status, void*, Address, size_t, Handle)                                   \
  X(hipMemcpyDtoDAsync, Status, Address, Address, size_t, Handle)                                 \
  X(hipMemsetD8Async, Status, Address, unsigned char, size_t, Handle)                             \
  X(hipEventCreateWithFlags, Status, Handle*, unsigned)                                           \
  X(hipEventRecord, Status, Handle, Handle)                                                       \
  X(hipEventSynchronize, Status, Handle)                                                          \
  X(hipEventElapsedTime, Status, float*, Handle, Handle)                                          \
  X(hipEventDestroy, Status, Handle)                                                              \
  X(hipModuleLoadData, Status, Handle*, const void*)                                              \
  X(hipModuleUnload, Status, Handle)                                                              \
  X(hipModuleGetFunction, Status, Handle*, Handle, const char*)                                   \
  X(hipModuleLaunchKernel, Status, Handle, unsigned, unsigned, unsigned, unsigned, unsigned,      \
    unsigned, unsigned, Handle, void**, void**)
// clang-format on

// The library's functions, or why there are none.
class Api {
 public:
#define BITFABRIC_HIP_DECLARE(function, result, ...) result (*function)(__VA_ARGS__) = nullptr;
  BITFABRIC_HIP_FUNCTIONS(BITFABRIC_HIP_DECLARE)
#undef BITFABRIC_HIP_DECLARE

  // Never destroyed: tensors may be freed after the last static destructor has run.
  static const Api& Get() {
    static const Api* const api = new Api();
    return *api;
  }

  // From here on releasing does nothing: at the end of the process the library tears itself down,
  // maybe before the last tensor and kernel are let go of, and the system takes all anyway.
  static void Retire() {
    Api& api = const_cast<Api&>(Get());
    api.hipFree = api.hipModuleUnload = api.hipEventDestroy = [](void*) -> Status { return 0; };
  }

  // Why there is no library; empty where there is one.
  const std::string& missing() const { return missing_; }
  const std::string& library() const { return library_.name(); }

 private:
  Api()
      : library_("FABRIC_HIP_LIB",
                 {
#if defined(_WIN32)
                     "amdhip64_7.dll", "amdhip64_6.dll", "amdhip64.dll",
#else
                     "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so",
                     "/opt/rocm/lib/libamdhip64.so",
#endif
                 }) {
    if (!library_.found()) {
      missing_ = "no HIP library could be opened; tried " + library_.tried() + ".";
      return;
    }
#define BITFABRIC_HIP_LOAD(function, result, ...)                             \
  function = reinterpret_cast<decltype(function)>(library_.Find(#function));  \
  if (function == nullptr) {                                                  \
    missing_ = library_.name() + " has no " #function ": ROCm 6 is needed.";  \
    return;                                                                   \
  }
    BITFABRIC_HIP_FUNCTIONS(BITFABRIC_HIP_LOAD)
#undef BITFABRIC_HIP_LOAD
  }

  DriverLibrary library_;
  std::string missing_;
};

}  // namespace hip
}  // namespace bitfabric
