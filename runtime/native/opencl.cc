// OpenCL for TVM's runtime, from outside of it: a device API, device modules, a timer, and what
// bitfabric asks beyond these. Loaded after libtvm_runtime; the block at the end registers it all.

#include "build_key.h"
#include "opencl/code.h"
#include "opencl/devices.h"
#include "opencl/kernel.h"
#include "opencl/recording.h"
#include "opencl/timer.h"
#include "registration.h"

namespace bitfabric {
namespace opencl {
namespace {

struct Backend {
  static constexpr const char* kName = "OpenCL";
  static constexpr const char* kKind = "opencl";
  static constexpr const char* kModule = kKind;
  static constexpr const char* kFormat = "cl";
  static constexpr DLDeviceType kType = kDLOpenCL;
  using Code = opencl::Code;
  using Device = opencl::Device;
  using Devices = opencl::Devices;
  using Kernel = opencl::Kernel;
  using Recording = opencl::Recording;
  using Timer = OpenCLTimer;
  static const ProgramCounts& Programs() { return CountedPrograms(); }
};

TVM_FFI_STATIC_INIT_BLOCK() { Register<Backend>(); }

}  // namespace
}  // namespace opencl
}  // namespace bitfabric
