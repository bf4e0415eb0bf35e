// Vulkan for TVM's runtime, from outside of it: a device API, device modules, a timer, and what
// bitfabric asks beyond these. Loaded after libtvm_runtime; the block at the end registers it all.

#include "build_key.h"
#include "registration.h"
#include "vulkan/code.h"
#include "vulkan/devices.h"
#include "vulkan/kernel.h"
#include "vulkan/recording.h"
#include "vulkan/timer.h"

namespace bitfabric {
namespace vulkan {
namespace {

struct Backend {
  static constexpr const char* kName = "Vulkan";
  static constexpr const char* kKind = "vulkan";
  static constexpr const char* kModule = kKind;
  static constexpr const char* kFormat = "spirv";
  static constexpr DLDeviceType kType = kDLVulkan;
  using Code = vulkan::Code;
  using Device = vulkan::Device;
  using Devices = vulkan::Devices;
  using Kernel = vulkan::Kernel;
  using Recording = vulkan::Recording;
  using Timer = VulkanTimer;
  static const ProgramCounts& Programs() { return CountedPrograms(); }
};

// Returns the address at which the host sees a tensor's memory; 0 where it does not.
int64_t Address(const ffi::Tensor& tensor) {
  const DLTensor* of = tensor.GetDLTensorPtr();
  const size_t place = PlaceIn<Backend>(*of, 0, static_cast<int64_t>(ffi::GetDataSize(*of)));
  char* const seen =
      Devices::Get().At(of->device.device_id).Seen(*static_cast<const Block*>(of->data));
  return seen == nullptr ? 0 : reinterpret_cast<int64_t>(seen + place);
}

// Waits until no command uses a tensor, so that the host may write its memory.
void Settle(const ffi::Tensor& tensor) {
  const DLTensor* of = tensor.GetDLTensorPtr();
  PlaceIn<Backend>(*of, 0, 0);
  Devices::Get().At(of->device.device_id).SettleUse(*static_cast<const Block*>(of->data));
}

// Returns as JSON which features a device was made with, none before its first use, and how often
// it was made.
ffi::String Enabled(int device) {
  Device& of = Devices::Get().Known(device);
  return JsonObject().Texts("features", of.enabled()).Number("made", of.made()).str();
}

// From now on devices are made with all that they have: for whoever puts tensors on a device before
// it knows which modules will come.
void ExpectAny() {
  static const Want* const all = [] {
    std::vector<std::string> names;
    for (const Feature& feature : KnownFeatures()) names.emplace_back(feature.name);
    return new Want(names);
  }();
  static_cast<void>(all);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  if (ffi::Function::GetGlobal("device_api.vulkan").has_value()) return;
  Register<Backend>();
  tvm::ffi::reflection::GlobalDef()
      .def("bitfabric.vulkan.address", Address)
      .def("bitfabric.vulkan.settle", Settle)
      .def("bitfabric.vulkan.enabled", Enabled)
      .def("bitfabric.vulkan.expect_any", ExpectAny);
}

}  // namespace
}  // namespace vulkan
}  // namespace bitfabric
