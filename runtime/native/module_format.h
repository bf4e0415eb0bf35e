// The bytes of a device module, as TVM writes them for OpenCL, CUDA and ROCm alike:
//     format | count | count × (key, name, argument types, launch tags, extra tags) | code
// Little endian; a text is a 64-bit length and its bytes, a list a 64-bit count and its items; a
// type is a code (8 bits), bits (8) and lanes (16); an extra tag is 32 bits.
#pragma once

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/reflection/accessor.h>
#include <tvm/ffi/string.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace bitfabric {

namespace ffi = tvm::ffi;

struct KernelInfo {
  std::string key;   // what the host code asks for
  std::string name;  // what the device code calls it
  std::vector<DLDataType> arguments;
  std::vector<std::string> launch_tags;
  std::vector<int32_t> extra_tags;
};

struct ModuleBytes {
  std::string format;  // "cl" for OpenCL C
  std::vector<KernelInfo> kernels;
  std::string code;
};

class ByteReader {
 public:
  ByteReader(const char* data, size_t bytes) : at_(data), end_(data + bytes) {}

  template <typename T>
  T Number() {
    T value;
    std::memcpy(&value, Take(sizeof(T)), sizeof(T));
    return value;
  }
  std::string Text() {
    const uint64_t bytes = Number<uint64_t>();
    return std::string(Take(bytes), static_cast<size_t>(bytes));
  }
  // A count of items of which each takes at least `least` bytes, so that a damaged count is found
  // before anything is allocated for it.
  size_t Count(size_t least) {
    const uint64_t count = Number<uint64_t>();
    if (count > left() / least) Truncated();
    return static_cast<size_t>(count);
  }
  size_t left() const { return static_cast<size_t>(end_ - at_); }

 private:
  const char* Take(uint64_t bytes) {
    if (bytes > left()) Truncated();
    const char* start = at_;
    at_ += bytes;
    return start;
  }
  [[noreturn]] static void Truncated() {
    TVM_FFI_THROW(ValueError) << "The device module is truncated or damaged.";
    throw;
  }

  const char* at_;
  const char* end_;
};

inline DLDataType ReadType(ByteReader* reader) {
  DLDataType type;
  type.code = reader->Number<uint8_t>();
  type.bits = reader->Number<uint8_t>();
  type.lanes = reader->Number<uint16_t>();
  return type;
}

inline KernelInfo ReadKernel(ByteReader* reader) {
  KernelInfo kernel;
  kernel.key = reader->Text();
  kernel.name = reader->Text();
  for (size_t n = reader->Count(4); n > 0; --n) kernel.arguments.push_back(ReadType(reader));
  for (size_t n = reader->Count(8); n > 0; --n) kernel.launch_tags.push_back(reader->Text());
  for (size_t n = reader->Count(4); n > 0; --n)
    kernel.extra_tags.push_back(reader->Number<int32_t>());
  return kernel;
}

inline ModuleBytes ReadModule(const char* data, size_t bytes) {
  ByteReader reader(data, bytes);
  ModuleBytes module;
  module.format = reader.Text();
  for (size_t n = reader.Count(40); n > 0; --n) module.kernels.push_back(ReadKernel(&reader));
  module.code = reader.Text();
  if (reader.left() != 0) {
    TVM_FFI_THROW(ValueError) << "The device module has " << reader.left()
                              << " bytes too many: another version of TVM wrote it.";
  }
  return module;
}

class ByteWriter {
 public:
  template <typename T>
  void Number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void Text(const std::string& text) {
    Number<uint64_t>(text.size());
    bytes_ += text;
  }
  std::string Release() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// The inverse of ReadModule, byte for byte what TVM's own compiler writes.
inline std::string WriteModule(const ModuleBytes& module) {
  ByteWriter writer;
  writer.Text(module.format);
  writer.Number<uint64_t>(module.kernels.size());
  for (const KernelInfo& kernel : module.kernels) {
    writer.Text(kernel.key);
    writer.Text(kernel.name);
    writer.Number<uint64_t>(kernel.arguments.size());
    for (const DLDataType& type : kernel.arguments) {
      writer.Number<uint8_t>(type.code);
      writer.Number<uint8_t>(type.bits);
      writer.Number<uint16_t>(type.lanes);
    }
    writer.Number<uint64_t>(kernel.launch_tags.size());
    for (const std::string& tag : kernel.launch_tags) writer.Text(tag);
    writer.Number<uint64_t>(kernel.extra_tags.size());
    for (int32_t tag : kernel.extra_tags) writer.Number<int32_t>(tag);
  }
  writer.Text(module.code);
  return writer.Release();
}

// A kernel's record as the compiler hands it over within one process. The class is not in the
// wheel's headers, but its fields can be read by their names.
inline KernelInfo KernelFromObject(const ffi::String& key, const ffi::ObjectRef& object) {
  using ffi::reflection::FieldGetter;
  static const char* const kType = "runtime.FunctionInfo";
  static const FieldGetter name(kType, "name"), types(kType, "arg_types"),
      tags(kType, "launch_param_tags"), extra(kType, "arg_extra_tags");
  KernelInfo kernel;
  kernel.key = key;
  kernel.name = name(object.get()).cast<ffi::String>();
  for (DLDataType type : types(object.get()).cast<ffi::Array<DLDataType>>())
    kernel.arguments.push_back(type);
  for (ffi::String tag : tags(object.get()).cast<ffi::Array<ffi::String>>())
    kernel.launch_tags.push_back(tag);
  for (int tag : extra(object.get()).cast<ffi::Array<int>>()) kernel.extra_tags.push_back(tag);
  return kernel;
}

}  // namespace bitfabric
