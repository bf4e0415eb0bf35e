// Stands in for a header that TVM's wheel does not ship but that its tvm/runtime/tensor.h includes.
// Nothing here serialises a tensor; the declarations only let that header compile.
#pragma once

#include <cstddef>

namespace tvm {
namespace support {

class Stream {
 public:
  virtual ~Stream() = default;
  virtual size_t Read(void* data, size_t bytes) = 0;
  virtual size_t Write(const void* data, size_t bytes) = 0;

  template <typename T>
  bool Read(T* value) {
    return Read(static_cast<void*>(value), sizeof(T)) == sizeof(T);
  }
  template <typename T>
  void Write(const T& value) {
    Write(static_cast<const void*>(&value), sizeof(T));
  }
  template <typename T>
  bool ReadArray(T* values, size_t count) {
    return Read(static_cast<void*>(values), count * sizeof(T)) == count * sizeof(T);
  }
  template <typename T>
  void WriteArray(const T* values, size_t count) {
    Write(static_cast<const void*>(values), count * sizeof(T));
  }
};

}  // namespace support
}  // namespace tvm
