// Errors as sentences. A message begins with the API's name and what kind of failure it is, so that
// the Python side can tell one that has a remedy ("OpenCL out of memory: …") from the others.
#pragma once

#include <tvm/ffi/error.h>

#include <cstddef>
#include <string>

namespace bitfabric {

enum class Trouble { kError, kOutOfMemory, kDeviceLost, kDriverMissing };

inline const char* TroubleName(Trouble trouble) {
  switch (trouble) {
    case Trouble::kOutOfMemory:
      return "out of memory";
    case Trouble::kDeviceLost:
      return "device lost";
    case Trouble::kDriverMissing:
      return "driver missing";
    default:
      return "error";
  }
}

[[noreturn]] inline void Raise(const char* api, Trouble trouble, const std::string& sentence) {
  TVM_FFI_THROW(RuntimeError) << api << " " << TroubleName(trouble) << ": " << sentence;
  throw;  // not reached: the line above always throws
}

// "6442450944 bytes (6.0 GiB)"; the unit is left out below a kibibyte.
inline std::string BytesText(size_t bytes) {
  static const char* const kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  std::string text = std::to_string(bytes) + " bytes";
  if (bytes < 1024) return text;
  double value = static_cast<double>(bytes) / 1024;
  int unit = 0;
  for (; value >= 1024 && unit < 3; ++unit) value /= 1024;
  const long tenths = static_cast<long>(value * 10 + 0.5);
  return text + " (" + std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " " +
         kUnits[unit] + ")";
}

}  // namespace bitfabric
