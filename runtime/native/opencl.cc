// OpenCL for TVM's runtime, from outside of it: a device API, device modules, a timer, and what
// bitfabric asks beyond these. Loaded after libtvm_runtime; the block at the end registers it all.

#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include "opencl/device_api.h"
#include "opencl/module.h"
#include "opencl/recording.h"
#include "opencl/tensors.h"
#include "opencl/timer.h"

// What the library was built for, found in the file's bytes before it is opened.
#ifndef BITFABRIC_BUILD_KEY
#define BITFABRIC_BUILD_KEY "none"
#endif
extern "C" {
#ifdef _WIN32
__declspec(dllexport)
#endif
extern const char bitfabric_build_key[];
const char bitfabric_build_key[] = "bitfabric build key: " BITFABRIC_BUILD_KEY ".";
}

namespace bitfabric {
namespace opencl {
namespace {

ffi::String Memory(int device) {
  const MemoryUsage usage = Devices::Get().Known(device).pool.usage();
  return JsonObject()
      .Number("in_use", usage.in_use)
      .Number("peak", usage.peak)
      .Number("reserved", usage.reserved)
      .str();
}

ffi::String Programs() {
  return JsonObject()
      .Number("compiled", CountedPrograms().compiled)
      .Number("loaded", CountedPrograms().loaded)
      .str();
}

// Calls a function and records its launches. Returns a function that launches them again, which
// stands for a call with the same arguments, and given true returns their times as JSON; null where
// the call did more than launch kernels.
ffi::Optional<ffi::Function> Record(const std::shared_ptr<RecordedMemory>& memory,
                                    const ffi::Function& function, const ffi::Function& taken) {
  auto recording = std::make_shared<Recording>(memory);
  recording->Begin();
  try {
    taken(function());
  } catch (...) {
    recording->End();
    throw;
  }
  if (!recording->End()) return std::nullopt;
  return ffi::Function::FromTyped([recording](bool timed) {
    if (timed) return ffi::String(recording->Profile());
    recording->Replay();
    return ffi::String();
  });
}

// Returns a function (function, taken) → replay or null: `taken` is called with the result of the
// recorded call, whose memory every replay writes to anew. All share one memory.
ffi::Function Recorder(int device) {
  auto memory = std::make_shared<RecordedMemory>(&Devices::Get().At(device));
  return ffi::Function::FromTyped(
      [memory](const ffi::Function& function, const ffi::Function& taken) {
        return Record(memory, function, taken);
      });
}

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  // A build of TVM with OpenCL of its own keeps it.
  if (ffi::Function::GetGlobal("device_api.opencl").has_value()) return;
  refl::GlobalDef()
      .def_packed("device_api.opencl",
                  [](ffi::PackedArgs, ffi::Any* value) {
                    *value = static_cast<void*>(static_cast<DeviceAPI*>(OpenCLDeviceApi::Get()));
                  })
      .def("ffi.Module.load_from_bytes.opencl", LoadModule)
      .def("ffi.Module.create.opencl", CreateModule)
      .def("runtime.timer.opencl",
           [](DLDevice device) {
             return tvm::runtime::Timer(ffi::make_object<OpenCLTimer>(device));
           })
      .def("bitfabric.opencl.devices", [] { return ffi::String(Devices::Get().Json()); })
      .def("bitfabric.opencl.memory", Memory)
      .def("bitfabric.opencl.reset_peak",
           [](int device) { Devices::Get().Known(device).pool.ResetPeak(); })
      .def("bitfabric.opencl.release",
           [](int device) { Devices::Get().Known(device).pool.ReleaseUnused(); })
      .def("bitfabric.opencl.programs", Programs)
      .def("bitfabric.opencl.recorder", Recorder)
      .def("bitfabric.opencl.view", View)
      .def("bitfabric.opencl.write", Write)
      .def("bitfabric.opencl.clear", Clear);
}

}  // namespace
}  // namespace opencl
}  // namespace bitfabric
