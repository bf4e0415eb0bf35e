// What a backend is to TVM's runtime and to bitfabric: its global functions.
//
// A `Backend` is a struct that names an API's parts:
//     kName     what errors call it ("OpenCL")
//     kKind     what TVM calls it ("opencl"); kType: its DLPack device type
//     kModule   what TVM calls its device modules
//     kFormat   of a module's code
//     Device    one device: index, info (DeviceFacts and Json), pool (Pool), Name, Open, submitted,
//               Write, Read, Copy, Clear, Wait, Part, Destroy
//     Devices   all of them: a DeviceList with Get
//     Kernel    Launch(device, values, count)
//     Code      a module's code: Source, and Make, which returns a kernel
//     Recording a RecordingOf with End, Replay and Profile
//     Timer     TVM's timer on a DLDevice
//     Programs  returns the counts of what was compiled and what was loaded from the disk
#pragma once

#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/timer.h>

#include <string>

#include "binary_cache.h"
#include "device_api.h"
#include "device_module.h"
#include "json.h"
#include "recording.h"
#include "tensors.h"

namespace bitfabric {

template <typename Backend>
ffi::String Memory(int device) {
  const MemoryUsage usage = Backend::Devices::Get().Known(device).pool.usage();
  return JsonObject()
      .Number("in_use", usage.in_use)
      .Number("peak", usage.peak)
      .Number("reserved", usage.reserved)
      .str();
}

template <typename Backend>
ffi::String Programs() {
  const ProgramCounts& counts = Backend::Programs();
  return JsonObject().Number("compiled", counts.compiled).Number("loaded", counts.loaded).str();
}

// Registers a backend's functions, unless a build of TVM has the API of its own.
template <typename Backend>
void Register() {
  using Devices = typename Backend::Devices;
  const std::string kind = Backend::kKind, own = "bitfabric." + kind + ".";
  if (ffi::Function::GetGlobal("device_api." + kind).has_value()) return;
  tvm::ffi::reflection::GlobalDef()
      .def_packed(("device_api." + kind).c_str(),
                  [](ffi::PackedArgs, ffi::Any* value) {
                    DeviceAPI* const api = DeviceApi<Backend>::Get();
                    *value = static_cast<void*>(api);
                  })
      .def((std::string("ffi.Module.load_from_bytes.") + Backend::kModule).c_str(), LoadModule<Backend>)
      .def(("ffi.Module.create." + kind).c_str(), CreateModule<Backend>)
      .def(("runtime.timer." + kind).c_str(),
           [](DLDevice device) {
             return tvm::runtime::Timer(ffi::make_object<typename Backend::Timer>(device));
           })
      .def((own + "devices").c_str(), [] { return ffi::String(Devices::Get().Json()); })
      .def((own + "memory").c_str(), Memory<Backend>)
      .def((own + "reset_peak").c_str(),
           [](int device) { Devices::Get().Known(device).pool.ResetPeak(); })
      .def((own + "budget").c_str(),
           [](int device, int64_t bytes) {
             Devices::Get().Known(device).pool.SetBudget(static_cast<size_t>(bytes));
           })
      .def((own + "release").c_str(),
           [](int device) { Devices::Get().Known(device).pool.ReleaseUnused(); })
      .def((own + "programs").c_str(), Programs<Backend>)
      .def((own + "recorder").c_str(), Recorder<Backend>)
      .def((own + "view").c_str(), View<Backend>)
      .def((own + "write").c_str(), Write<Backend>)
      .def((own + "clear").c_str(), Clear<Backend>);
}

}  // namespace bitfabric
