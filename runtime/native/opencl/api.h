// OpenCL's C interface, as much of version 1.2 as is used, taken from the driver when it is first
// asked for. Declared here rather than included: neither headers nor a library have to be installed
// to build this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../driver.h"

#ifdef _WIN32
#define BITFABRIC_CL __stdcall
#else
#define BITFABRIC_CL
#endif

namespace bitfabric {
namespace opencl {

// Every cl_* object is a pointer that only the driver looks into.
using Handle = void*;
using Status = int32_t;
using UInt = uint32_t;
using Bits = uint64_t;
using Notify = void(BITFABRIC_CL*)(const char* message, const void*, size_t, void* data);

enum : Bits {
  kTypeCpu = 2,
  kTypeGpu = 4,
  kTypeAll = 0xFFFFFFFF,
  kReadWrite = 1,
  kProfiling = 2,
  kCorrectlyRounded = 1 << 7,
  kPackedDotProduct = 1,
};

enum : UInt {
  kFalse = 0,
  kPlatformVersion = 0x0901,
  kPlatformName = 0x0902,
  kDeviceType = 0x1000,
  kDeviceComputeUnits = 0x1002,
  kDeviceGroupSize = 0x1004,
  kDeviceItemSizes = 0x1005,
  kDeviceClock = 0x100C,
  kDeviceMaxAllocation = 0x1010,
  kDeviceAlignment = 0x1019,
  kDeviceSingleConfig = 0x101B,
  kDeviceCacheBytes = 0x101E,
  kDeviceGlobalBytes = 0x101F,
  kDeviceLocalType = 0x1022,
  kDeviceLocalBytes = 0x1023,
  kDeviceAvailable = 0x1027,
  kDeviceCompilerAvailable = 0x1028,
  kDeviceName = 0x102B,
  kDeviceVendor = 0x102C,
  kDriverVersion = 0x102D,
  kDeviceVersion = 0x102F,
  kDeviceExtensions = 0x1030,
  kDeviceUnifiedMemory = 0x1035,
  kDeviceCVersion = 0x103D,
  kDeviceCAllVersions = 0x1066,    // 3.0
  kDeviceDotProduct = 0x1073,      // cl_khr_integer_dot_product
  kDeviceWarpSizeNvidia = 0x4003,  // cl_nv_device_attribute_query
  kDeviceWavefrontAmd = 0x4043,    // cl_amd_device_attribute_query
  kDeviceSubgroupsIntel = 0x4108,  // cl_intel_required_subgroup_size
  kContextPlatform = 0x1084,
  kProgramBinarySizes = 0x1165,
  kProgramBinaries = 0x1166,
  kProgramBuildLog = 0x1183,
  kKernelGroupSize = 0x11B0,
  kEventStatus = 0x11D3,
  kRegion = 0x1220,
  kProfilingStart = 0x1282, kProfilingEnd = 0x1283,
};

struct Region {
  size_t origin;
  size_t size;
};

// cl_name_version of OpenCL 3.0.
struct NameVersion {
  UInt version;  // major in the highest 10 bits, minor in the 10 below
  char name[64];
};

// clang-format off
#define BITFABRIC_CL_FUNCTIONS(X)                                                                 \
  X(clGetPlatformIDs, Status, UInt, Handle*, UInt*)                                               \
  X(clGetPlatformInfo, Status, Handle, UInt, size_t, void*, size_t*)                              \
  X(clGetDeviceIDs, Status, Handle, Bits, UInt, Handle*, UInt*)                                   \
  X(clGetDeviceInfo, Status, Handle, UInt, size_t, void*, size_t*)                                \
  X(clCreateContext, Handle, const intptr_t*, UInt, const Handle*, Notify, void*, Status*)        \
  X(clCreateCommandQueue, Handle, Handle, Handle, Bits, Status*)                                  \
  X(clCreateBuffer, Handle, Handle, Bits, size_t, void*, Status*)                                 \
  X(clCreateSubBuffer, Handle, Handle, Bits, UInt, const void*, Status*)                          \
  X(clReleaseMemObject, Status, Handle)                                                           \
  X(clEnqueueReadBuffer, Status, Handle, Handle, UInt, size_t, size_t, void*, UInt,               \
    const Handle*, Handle*)                                                                       \
  X(clEnqueueWriteBuffer, Status, Handle, Handle, UInt, size_t, size_t, const void*, UInt,        \
    const Handle*, Handle*)                                                                       \
  X(clEnqueueCopyBuffer, Status, Handle, Handle, Handle, size_t, size_t, size_t, UInt,            \
    const Handle*, Handle*)                                                                       \
  X(clEnqueueFillBuffer, Status, Handle, Handle, const void*, size_t, size_t, size_t, UInt,       \
    const Handle*, Handle*)                                                                       \
  X(clEnqueueNDRangeKernel, Status, Handle, Handle, UInt, const size_t*, const size_t*,           \
    const size_t*, UInt, const Handle*, Handle*)                                                  \
  X(clEnqueueMarkerWithWaitList, Status, Handle, UInt, const Handle*, Handle*)                    \
  X(clFlush, Status, Handle)                                                                      \
  X(clFinish, Status, Handle)                                                                     \
  X(clWaitForEvents, Status, UInt, const Handle*)                                                 \
  X(clGetEventInfo, Status, Handle, UInt, size_t, void*, size_t*)                                 \
  X(clGetEventProfilingInfo, Status, Handle, UInt, size_t, void*, size_t*)                        \
  X(clReleaseEvent, Status, Handle)                                                               \
  X(clCreateProgramWithSource, Handle, Handle, UInt, const char**, const size_t*, Status*)        \
  X(clCreateProgramWithBinary, Handle, Handle, UInt, const Handle*, const size_t*,                \
    const unsigned char**, Status*, Status*)                                                      \
  X(clBuildProgram, Status, Handle, UInt, const Handle*, const char*, void*, void*)               \
  X(clGetProgramInfo, Status, Handle, UInt, size_t, void*, size_t*)                               \
  X(clGetProgramBuildInfo, Status, Handle, Handle, UInt, size_t, void*, size_t*)                  \
  X(clReleaseProgram, Status, Handle)                                                             \
  X(clCreateKernel, Handle, Handle, const char*, Status*)                                         \
  X(clGetKernelWorkGroupInfo, Status, Handle, Handle, UInt, size_t, void*, size_t*)               \
  X(clSetKernelArg, Status, Handle, UInt, size_t, const void*)                                    \
  X(clReleaseKernel, Status, Handle)
// clang-format on

// The driver's functions, or why there are none.
class Api {
 public:
#define BITFABRIC_CL_DECLARE(function, result, ...) \
  result(BITFABRIC_CL* function)(__VA_ARGS__) = nullptr;
  BITFABRIC_CL_FUNCTIONS(BITFABRIC_CL_DECLARE)
#undef BITFABRIC_CL_DECLARE

  // Never destroyed: tensors may be freed after the last static destructor has run.
  static const Api& Get() {
    static const Api* const api = new Api();
    return *api;
  }

  // From here on releasing does nothing. At the end of the process drivers tear themselves down,
  // some before the last tensor and kernel are let go of (PoCL), and the system takes all anyway.
  static void Retire() {
    Api& api = const_cast<Api&>(Get());
    api.clReleaseMemObject = api.clReleaseKernel = api.clReleaseProgram = api.clReleaseEvent =
        [](Handle) -> Status { return 0; };
  }

  // Why there is no driver; empty where there is one.
  const std::string& missing() const { return missing_; }
  const std::string& library() const { return library_.name(); }

 private:
  Api()
      : library_("FABRIC_OPENCL_LIB",
                 {
#if defined(_WIN32)
                     "OpenCL.dll",
#elif defined(__APPLE__)
                     "/System/Library/Frameworks/OpenCL.framework/OpenCL",
#else
                     "libOpenCL.so.1", "libOpenCL.so",
#if defined(__ANDROID__) || defined(__aarch64__) || defined(__arm__)
                     // Phones have no loader, only the vendor's own library under one of these.
                     "/vendor/lib64/libOpenCL.so", "/system/vendor/lib64/libOpenCL.so",
                     "/system/lib64/libOpenCL.so", "/vendor/lib64/libOpenCL_adreno.so",
                     "/vendor/lib64/egl/libGLES_mali.so",
                     "/system/vendor/lib64/egl/libGLES_mali.so", "/vendor/lib64/libPVROCL.so",
                     "/vendor/lib64/libOpenCL-pixel.so", "libOpenCL-pixel.so", "libOpenCL-car.so",
#endif
#endif
                 }) {
    if (!library_.found()) {
      missing_ = "no OpenCL driver could be opened; tried " + library_.tried() + ".";
      return;
    }
    // Pixel phones hand their functions out through a function of their own.
    using Loader = void* (*)(const char*);
    auto* loader = reinterpret_cast<Loader>(library_.Find("loadOpenCLPointer"));
    if (auto* enable = reinterpret_cast<void (*)()>(library_.Find("enableOpenCL"))) enable();
#define BITFABRIC_CL_LOAD(function, result, ...)                                           \
  function = reinterpret_cast<decltype(function)>(library_.Find(#function));               \
  if (function == nullptr && loader != nullptr)                                            \
    function = reinterpret_cast<decltype(function)>(loader(#function));                    \
  if (function == nullptr) {                                                               \
    missing_ = library_.name() + " has no " #function ": OpenCL 1.2 is needed.";           \
    return;                                                                                \
  }
    BITFABRIC_CL_FUNCTIONS(BITFABRIC_CL_LOAD)
#undef BITFABRIC_CL_LOAD
  }

  DriverLibrary library_;
  std::string missing_;
};

}  // namespace opencl
}  // namespace bitfabric
