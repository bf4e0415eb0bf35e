// HIP's error codes: what kind of failure each is, and how it is raised.
#pragma once

#include <string>

#include "../errors.h"
#include "api.h"

namespace bitfabric {
namespace hip {

enum : Status {
  kSuccess = 0,
  kOutOfMemory = 2,
  kNoDevice = 100,
  kNoBinary = 209,
  kEccError = 214,
  kIllegalAddress = 700,
  kOutOfResources = 701,
  kTimeOut = 702,
  kContextDestroyed = 709,
  kAssertFailed = 710,
  kLaunchFailure = 719,
};

// A kernel went wrong, or the device is gone: nothing that follows can be relied upon.
inline bool IsLost(Status status) {
  return status == kEccError || status == kIllegalAddress || status == kTimeOut ||
         status == kContextDestroyed || status == kAssertFailed || status == kLaunchFailure;
}

// Raises a failed call as a sentence: "ROCm out of memory: hipX … failed with hipErrorY (2)."
[[noreturn]] inline void RaiseStatus(Status status, const std::string& what,
                                     const std::string& note = "") {
  Trouble trouble = Trouble::kError;
  if (IsLost(status)) trouble = Trouble::kDeviceLost;
  if (status == kOutOfMemory) trouble = Trouble::kOutOfMemory;
  const char* name = Api::Get().hipGetErrorName(status);
  std::string sentence = what + " failed with " + (name == nullptr ? "HIP error" : name) + " (" +
                         std::to_string(status) + ")";
  if (!note.empty()) sentence += "; " + note;
  Raise("ROCm", trouble, sentence + ".");
}

}  // namespace hip
}  // namespace bitfabric
