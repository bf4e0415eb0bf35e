// The code of a module: its kernels as SPIR-V, each with what a launch must know of it.
//     "bitfabric.spirv.1" | count | count × kernel
//     kernel: name | version of Vulkan (u32) | interface, spilled, foldable, 0 (u8 each)
//           | bytes of the argument block, place of the grid's extents in it, size of a subgroup,
//             shared bytes (u32 each) | size of a group (3 × u32)
//           | n × argument (u8 kind, u8 access, u16 zero, u32 place) | n × feature | SPIR-V
// Texts and counts are those of module_format.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../module_format.h"

namespace bitfabric {
namespace vulkan {

struct KernelCode {
  static constexpr size_t kBlockMost = 4096;    // bytes of arguments
  static constexpr size_t kArgumentsMost = 256;

  struct Argument {
    bool buffer;
    uint8_t access;  // kRead and kWrite
    uint32_t place;  // in the block, in bytes; of a buffer in a descriptor, its binding
  };

  std::string name;
  uint32_t vulkan = 0;  // the version that it needs
  bool descriptors = false;
  bool spilled = false;
  bool foldable = false;
  uint32_t block_bytes = 0;
  uint32_t grid_offset = 0;    // where the grid's extents lie in the block, where it is foldable
  uint32_t subgroup_size = 0;  // 0 where any will do
  uint32_t shared_bytes = 0;
  std::vector<Argument> arguments;
  std::vector<std::string> features;
  std::vector<uint32_t> spirv;
  std::string entry;  // the name of the entry point
};

[[noreturn]] inline void RaiseDamaged(const std::string& kernel) {
  TVM_FFI_THROW(ValueError) << "Kernel " << kernel << " of the Vulkan module is damaged.";
  throw;
}

// The name of the first entry point; empty where the words are no SPIR-V with one.
inline std::string EntryPoint(const std::vector<uint32_t>& words) {
  constexpr uint32_t kMagic = 0x07230203, kOpEntryPoint = 15, kCompute = 5;
  constexpr size_t kHeader = 5, kName = 3;
  if (words.size() < kHeader || words[0] != kMagic) return {};
  for (size_t at = kHeader; at < words.size();) {
    const size_t count = words[at] >> 16;
    if (count == 0 || count > words.size() - at) return {};
    if ((words[at] & 0xFFFF) == kOpEntryPoint && count > kName && words[at + 1] == kCompute) {
      const char* name = reinterpret_cast<const char*>(&words[at + kName]);
      return std::string(name, strnlen(name, (count - kName) * sizeof(uint32_t)));
    }
    at += count;
  }
  return {};
}

inline void CheckPlaces(const KernelCode& kernel) {
  const bool large = kernel.block_bytes > KernelCode::kBlockMost || kernel.block_bytes % 4 != 0 ||
                     kernel.arguments.size() > KernelCode::kArgumentsMost;
  const uint64_t grid_end = uint64_t{kernel.grid_offset} + 3 * sizeof(uint32_t);
  const bool outside = grid_end > kernel.block_bytes || kernel.grid_offset % 4 != 0;
  if (large || (kernel.foldable && outside) || (kernel.spilled && kernel.descriptors))
    RaiseDamaged(kernel.name);
  for (const KernelCode::Argument& argument : kernel.arguments) {
    if (argument.access > 3) RaiseDamaged(kernel.name);
    if (argument.buffer && kernel.descriptors) continue;
    // A scalar's width is known with its type, when the kernel is first asked for.
    const uint64_t end = uint64_t{argument.place} + (argument.buffer ? 8 : 1);
    if (end > kernel.block_bytes) RaiseDamaged(kernel.name);
  }
}

inline KernelCode ReadKernelCode(ByteReader* reader) {
  KernelCode kernel;
  kernel.name = reader->Text();
  kernel.vulkan = reader->Number<uint32_t>();
  kernel.descriptors = reader->Number<uint8_t>() != 0;
  kernel.spilled = reader->Number<uint8_t>() != 0;
  kernel.foldable = reader->Number<uint8_t>() != 0;
  reader->Number<uint8_t>();
  kernel.block_bytes = reader->Number<uint32_t>();
  kernel.grid_offset = reader->Number<uint32_t>();
  kernel.subgroup_size = reader->Number<uint32_t>();
  kernel.shared_bytes = reader->Number<uint32_t>();
  // The size of a group comes with each launch.
  for (int i = 0; i < 3; ++i) reader->Number<uint32_t>();
  for (size_t n = reader->Count(8); n > 0; --n) {
    KernelCode::Argument argument;
    argument.buffer = reader->Number<uint8_t>() != 0;
    argument.access = reader->Number<uint8_t>();
    reader->Number<uint16_t>();
    argument.place = reader->Number<uint32_t>();
    kernel.arguments.push_back(argument);
  }
  for (size_t n = reader->Count(8); n > 0; --n) kernel.features.push_back(reader->Text());
  const std::string bytes = reader->Text();
  if (bytes.size() % sizeof(uint32_t) != 0) RaiseDamaged(kernel.name);
  kernel.spirv.resize(bytes.size() / sizeof(uint32_t));
  std::memcpy(kernel.spirv.data(), bytes.data(), bytes.size());
  kernel.entry = EntryPoint(kernel.spirv);
  if (kernel.entry.empty()) RaiseDamaged(kernel.name);
  CheckPlaces(kernel);
  return kernel;
}

// The kernels of a module by their names.
inline std::unordered_map<std::string, KernelCode> ReadContainer(const std::string& code) {
  static const char kFormat[] = "bitfabric.spirv.1";
  ByteReader reader(code.data(), code.size());
  const std::string format = reader.Text();
  if (format != kFormat) {
    TVM_FFI_THROW(ValueError) << "The Vulkan module has the format " << format << "; only "
                              << kFormat << " can be loaded.";
  }
  std::unordered_map<std::string, KernelCode> kernels;
  for (size_t n = reader.Count(72); n > 0; --n) {
    KernelCode kernel = ReadKernelCode(&reader);
    const std::string name = kernel.name;
    kernels.emplace(name, std::move(kernel));
  }
  if (reader.left() != 0) {
    TVM_FFI_THROW(ValueError) << "The Vulkan module has " << reader.left()
                              << " bytes too many: another version of fabric wrote it.";
  }
  return kernels;
}

}  // namespace vulkan
}  // namespace bitfabric
