// HIP, ROCm's interface, for TVM's runtime, from outside of it: a device API, device modules, a
// timer, and what bitfabric asks beyond these. Loaded after libtvm_runtime; the block at the end
// registers it all.

#include "build_key.h"
#include "hip/code.h"
#include "hip/devices.h"
#include "hip/kernel.h"
#include "hip/recording.h"
#include "hip/timer.h"
#include "registration.h"

namespace bitfabric {
namespace hip {
namespace {

struct Backend {
  static constexpr const char* kName = "ROCm";
  static constexpr const char* kKind = "rocm";
  static constexpr const char* kModule = "hip";
  static constexpr const char* kFormat = "hsaco";
  static constexpr DLDeviceType kType = kDLROCM;
  using Code = hip::Code;
  using Device = hip::Device;
  using Devices = hip::Devices;
  using Kernel = hip::Kernel;
  using Recording = hip::Recording;
  using Timer = HipTimer;
  static const ProgramCounts& Programs() { return CountedPrograms(); }
};

TVM_FFI_STATIC_INIT_BLOCK() { Register<Backend>(); }

}  // namespace
}  // namespace hip
}  // namespace bitfabric
