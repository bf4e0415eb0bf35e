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

TVM_FFI_STATIC_INIT_BLOCK() { Register<Backend>(); }

}  // namespace
}  // namespace vulkan
}  // namespace bitfabric
