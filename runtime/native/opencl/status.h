// OpenCL's error codes: their names, what kind of failure each is, and how it is raised.
#pragma once

#include <mutex>
#include <string>

#include "../errors.h"
#include "api.h"

namespace bitfabric {
namespace opencl {

enum : Status {
  kSuccess = 0,
  kDeviceNotFound = -1,
  kDeviceNotAvailable = -2,
  kAllocationFailure = -4,
  kOutOfResources = -5,
  kOutOfHostMemory = -6,
  kWaitListFailed = -14,
  kInvalidContext = -34,
  kInvalidQueue = -36,
  kInvalidGroupSize = -54,
  kInvalidBufferSize = -61,
};

inline std::string StatusName(Status status) {
  struct Entry {
    Status status;
    const char* name;
  };
  static const Entry kNames[] = {
      {-1, "CL_DEVICE_NOT_FOUND"},
      {-2, "CL_DEVICE_NOT_AVAILABLE"},
      {-3, "CL_COMPILER_NOT_AVAILABLE"},
      {-4, "CL_MEM_OBJECT_ALLOCATION_FAILURE"},
      {-5, "CL_OUT_OF_RESOURCES"},
      {-6, "CL_OUT_OF_HOST_MEMORY"},
      {-7, "CL_PROFILING_INFO_NOT_AVAILABLE"},
      {-8, "CL_MEM_COPY_OVERLAP"},
      {-11, "CL_BUILD_PROGRAM_FAILURE"},
      {-12, "CL_MAP_FAILURE"},
      {-13, "CL_MISALIGNED_SUB_BUFFER_OFFSET"},
      {-14, "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"},
      {-15, "CL_COMPILE_PROGRAM_FAILURE"},
      {-16, "CL_LINKER_NOT_AVAILABLE"},
      {-17, "CL_LINK_PROGRAM_FAILURE"},
      {-30, "CL_INVALID_VALUE"},
      {-31, "CL_INVALID_DEVICE_TYPE"},
      {-32, "CL_INVALID_PLATFORM"},
      {-33, "CL_INVALID_DEVICE"},
      {-34, "CL_INVALID_CONTEXT"},
      {-35, "CL_INVALID_QUEUE_PROPERTIES"},
      {-36, "CL_INVALID_COMMAND_QUEUE"},
      {-37, "CL_INVALID_HOST_PTR"},
      {-38, "CL_INVALID_MEM_OBJECT"},
      {-42, "CL_INVALID_BINARY"},
      {-43, "CL_INVALID_BUILD_OPTIONS"},
      {-44, "CL_INVALID_PROGRAM"},
      {-45, "CL_INVALID_PROGRAM_EXECUTABLE"},
      {-46, "CL_INVALID_KERNEL_NAME"},
      {-47, "CL_INVALID_KERNEL_DEFINITION"},
      {-48, "CL_INVALID_KERNEL"},
      {-49, "CL_INVALID_ARG_INDEX"},
      {-50, "CL_INVALID_ARG_VALUE"},
      {-51, "CL_INVALID_ARG_SIZE"},
      {-52, "CL_INVALID_KERNEL_ARGS"},
      {-53, "CL_INVALID_WORK_DIMENSION"},
      {-54, "CL_INVALID_WORK_GROUP_SIZE"},
      {-55, "CL_INVALID_WORK_ITEM_SIZE"},
      {-56, "CL_INVALID_GLOBAL_OFFSET"},
      {-57, "CL_INVALID_EVENT_WAIT_LIST"},
      {-58, "CL_INVALID_EVENT"},
      {-59, "CL_INVALID_OPERATION"},
      {-61, "CL_INVALID_BUFFER_SIZE"},
      {-63, "CL_INVALID_GLOBAL_WORK_SIZE"},
      {-64, "CL_INVALID_PROPERTY"},
      {-1001, "CL_PLATFORM_NOT_FOUND_KHR"},
      {-9999, "an illegal access by a kernel"},  // NVIDIA's own number
  };
  for (const Entry& entry : kNames)
    if (entry.status == status) return entry.name;
  return "OpenCL error";
}

inline bool IsOutOfMemory(Status status) {
  return status == kAllocationFailure || status == kOutOfResources || status == kOutOfHostMemory ||
         status == kInvalidBufferSize;
}

// What the driver last said about a context, to be added to the next error. Drivers call back from
// threads of their own.
class DriverMessage {
 public:
  static void BITFABRIC_CL Receive(const char* message, const void*, size_t, void* data) {
    auto* self = static_cast<DriverMessage*>(data);
    std::lock_guard<std::mutex> lock(self->mutex_);
    self->text_ = message == nullptr ? "" : message;
  }
  std::string Take() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::string text;
    text.swap(text_);
    return text;
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

// Raises a failed call as a sentence: "OpenCL out of memory: clX for … failed with CL_Y (-4)."
// `waiting`: the call reports how commands went that were accepted before. Running out of
// resources then means that a kernel was stopped by a fault or a time limit, and with it the queue.
[[noreturn]] inline void RaiseStatus(Status status, const std::string& what, bool waiting = false,
                                     const std::string& note = "") {
  Trouble trouble = Trouble::kError;
  const bool stopped = waiting && (status == kOutOfResources || status == kWaitListFailed);
  if (stopped || status == kDeviceNotAvailable || status == kInvalidQueue ||
      status == kInvalidContext || status == -9999) {
    trouble = Trouble::kDeviceLost;
  } else if (IsOutOfMemory(status)) {
    trouble = Trouble::kOutOfMemory;
  }
  std::string sentence =
      what + " failed with " + StatusName(status) + " (" + std::to_string(status) + ")";
  if (!note.empty()) sentence += "; " + note;
  Raise("OpenCL", trouble, sentence + ".");
}

}  // namespace opencl
}  // namespace bitfabric
