// A kernel's arguments and work sizes out of what compiled host code passes: an array of tagged
// values, first the kernel's arguments, then one extent for each launch tag.
#pragma once

#include <tvm/ffi/c_api.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "errors.h"
#include "module_format.h"
#include "pool.h"

namespace bitfabric {

enum class ArgumentKind : uint8_t { kBuffer, kInteger, kFloat32, kFloat64 };

struct ArgumentSlot {
  ArgumentKind kind;
  uint8_t bytes;  // what the kernel takes; a buffer's is a pointer's
};

// The layout of a kernel's arguments; a type that no kernel can take is refused here, once.
inline std::vector<ArgumentSlot> ArgumentLayout(const KernelInfo& kernel) {
  std::vector<ArgumentSlot> layout;
  for (const DLDataType& type : kernel.arguments) {
    const uint8_t bytes = static_cast<uint8_t>(type.bits / 8);
    const bool whole = type.bits == 8 || type.bits == 16 || type.bits == 32 || type.bits == 64;
    if (type.lanes == 1 && type.code == kDLOpaqueHandle) {
      layout.push_back({ArgumentKind::kBuffer, static_cast<uint8_t>(sizeof(void*))});
    } else if (type.lanes == 1 && whole && (type.code == kDLInt || type.code == kDLUInt)) {
      layout.push_back({ArgumentKind::kInteger, bytes});
    } else if (type.lanes == 1 && type.code == kDLFloat && type.bits == 32) {
      layout.push_back({ArgumentKind::kFloat32, bytes});
    } else if (type.lanes == 1 && type.code == kDLFloat && type.bits == 64) {
      layout.push_back({ArgumentKind::kFloat64, bytes});
    } else {
      TVM_FFI_THROW(TypeError) << "Kernel " << kernel.name << " takes a scalar of type "
                               << ffi::DLDataTypeToString(type)
                               << " as argument " << layout.size()
                               << "; buffers, integers, float32 and float64 can be passed.";
    }
  }
  return layout;
}

[[noreturn]] inline void RaiseCount(const std::string& kernel, size_t arguments, size_t extents,
                                    size_t count) {
  TVM_FFI_THROW(TypeError) << "Kernel " << kernel << " takes " << arguments << " arguments and "
                           << extents << " launch extents, not " << count << " values in all.";
  throw;
}

// `device`: where the kernel runs.
[[noreturn]] inline void RaiseForeign(const char* api, const std::string& kernel,
                                      const std::string& device, size_t at, const Block& block) {
  Raise(api, Trouble::kError,
        "Kernel " + kernel + " runs on " + device + ", but its argument " + std::to_string(at) +
            " lies on device " + std::to_string(block.device) + ".");
}

// The block behind a buffer argument; null where the host code passes none.
inline const Block* BufferArgument(const TVMFFIAny& value, const std::string& kernel, size_t at) {
  if (value.type_index == kTVMFFIOpaquePtr) return static_cast<const Block*>(value.v_ptr);
  if (value.type_index == kTVMFFINone) return nullptr;
  // Called by hand rather than by compiled host code: a tensor stands for its memory.
  const DLTensor* tensor = nullptr;
  if (value.type_index == kTVMFFIDLTensorPtr) {
    tensor = static_cast<const DLTensor*>(value.v_ptr);
  } else if (value.type_index == kTVMFFITensor) {
    tensor = TVMFFITensorGetDLTensorPtr(value.v_obj);
  }
  if (tensor == nullptr || tensor->device.device_type == kDLCPU || tensor->byte_offset != 0) {
    TVM_FFI_THROW(TypeError) << "Kernel " << kernel << " takes device memory as argument " << at
                             << ", from its first byte on.";
  }
  return static_cast<const Block*>(tensor->data);
}

// The bytes of a scalar argument, in the low bytes of the result. Every machine that this runs on
// is little endian, so the low bytes of an integer are the integer of the narrower type.
inline uint64_t ScalarArgument(const TVMFFIAny& value, ArgumentKind kind) {
  if (kind == ArgumentKind::kInteger) return static_cast<uint64_t>(value.v_int64);
  const double number =
      value.type_index == kTVMFFIInt ? static_cast<double>(value.v_int64) : value.v_float64;
  uint64_t bits = 0;
  if (kind == ArgumentKind::kFloat32) {
    const float narrow = static_cast<float>(number);
    std::memcpy(&bits, &narrow, sizeof narrow);
  } else {
    std::memcpy(&bits, &number, sizeof number);
  }
  return bits;
}

struct WorkSize {
  size_t groups[3] = {1, 1, 1};
  size_t threads[3] = {1, 1, 1};  // in a group
};

inline std::string WorkText(const size_t (&size)[3]) {
  return std::to_string(size[0]) + "x" + std::to_string(size[1]) + "x" + std::to_string(size[2]);
}

// What was asked for, for errors.
inline std::string LaunchText(const std::string& kernel, const WorkSize& work,
                              const std::string& device) {
  return "Launching kernel " + kernel + " with " + WorkText(work.groups) + " groups of " +
         WorkText(work.threads) + " threads on " + device;
}

// Where each launch extent goes. Unknown tags are refused when the kernel is first asked for.
class LaunchLayout {
 public:
  explicit LaunchLayout(const KernelInfo& kernel) {
    for (const std::string& tag : kernel.launch_tags) {
      const bool group = tag.size() == 10 && tag.compare(0, 9, "blockIdx.") == 0;
      const bool thread = tag.size() == 11 && tag.compare(0, 10, "threadIdx.") == 0;
      const int axis = group || thread ? tag.back() - 'x' : -1;
      if (axis < 0 || axis > 2) {
        TVM_FFI_THROW(ValueError) << "Kernel " << kernel.name << " has the launch parameter " << tag
                                  << ", which this device API does not have.";
      }
      slots_.push_back(static_cast<uint8_t>(group ? axis : 3 + axis));
      if (axis + 1 > dimensions_) dimensions_ = axis + 1;
    }
  }

  int dimensions() const { return dimensions_; }
  size_t size() const { return slots_.size(); }

  // Reads the extents into `work`; false where one is zero, so that there is nothing to launch.
  bool Read(const TVMFFIAny* extents, WorkSize* work) const {
    for (size_t i = 0; i < slots_.size(); ++i) {
      const int64_t extent = extents[i].v_int64;
      if (extent <= 0) return false;
      const uint8_t slot = slots_[i];
      (slot < 3 ? work->groups[slot] : work->threads[slot - 3]) = static_cast<size_t>(extent);
    }
    return true;
  }

 private:
  std::vector<uint8_t> slots_;  // 0–2: groups along x, y, z; 3–5: threads
  int dimensions_ = 1;
};

}  // namespace bitfabric
