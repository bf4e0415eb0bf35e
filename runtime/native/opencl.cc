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

// Returns an event behind everything that was asked so far.
void* MarkQueue(int device) { return Devices::Get().At(device).MarkNow(); }

// Copies host memory to a part of a tensor beside the kernels, after a mark or null.
void Upload(const ffi::Tensor& tensor, int64_t byte_offset, void* from, int64_t bytes,
            void* after) {
  const DLTensor* to = tensor.GetDLTensorPtr();
  const size_t place = PlaceIn<Backend>(*to, byte_offset, bytes);
  Devices::Get()
      .At(to->device.device_id)
      .Upload(*static_cast<const Block*>(to->data), place, from, static_cast<size_t>(bytes), after);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  // Another copy of this library may be here: the first one stays.
  if (ffi::Function::GetGlobal("device_api.opencl").has_value()) return;
  Register<Backend>();
  tvm::ffi::reflection::GlobalDef()
      .def("bitfabric.opencl.mark", MarkQueue)
      .def("bitfabric.opencl.upload", Upload);
}

}  // namespace
}  // namespace opencl
}  // namespace bitfabric
