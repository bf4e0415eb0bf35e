// From a kernel's OpenCL C to a kernel object: compiled by the driver, or taken from the disk.
#pragma once

#include <string>
#include <vector>

#include "../binary_cache.h"
#include "device.h"

namespace bitfabric {
namespace opencl {

// The options that kernels are compiled with.
//
// No -cl-fast-relaxed-math: the quantisation of activations rounds a quotient, and softmax needs
// its infinities. No -cl-mad-enable either: contraction into fused multiply-adds is allowed without
// it, so it could only admit less exact ones. Where the device can, division and square root are
// correctly rounded: the codes of the activations are then the CPU's codes, bit for bit.
//
// The language is the 1.x that drivers take by default, as generic address spaces of the later ones
// cost registers; only built-in functions that came later raise it.
inline std::string BuildOptions(const DeviceInfo& info, const std::string& source) {
  std::string options;
  if (info.correctly_rounded) options += "-cl-fp32-correctly-rounded-divide-sqrt";
  const bool later = source.find("sub_group_") != std::string::npos ||
                     source.find("_4x8packed") != std::string::npos;
  if (later && info.c_version >= 20) {
    options += options.empty() ? "" : " ";
    options += info.c_version >= 30 ? "-cl-std=CL3.0" : "-cl-std=CL2.0";
  }
  return options;
}

inline ProgramCounts& CountedPrograms() {
  static ProgramCounts counts;
  return counts;
}

class ProgramBuilder {
 public:
  explicit ProgramBuilder(Device* device) : device_(device), cache_("opencl") {}

  // Returns a program with the kernel `name`, compiled for the device.
  Handle Build(const std::string& name, const std::string& source) const {
    const DeviceInfo& info = device_->info;
    const std::string options = BuildOptions(info, source);
    std::string key;
    for (const std::string* part : {&info.platform, &info.platform_version, &info.name,
                                    &info.version, &info.driver, &options, &source})
      key += *part + '\n';
    Handle program = FromBinary(cache_.Load(key), options);
    if (program != nullptr) {
      ++CountedPrograms().loaded;
      return program;
    }
    program = FromSource(name, source, options);
    ++CountedPrograms().compiled;
    cache_.Store(key, BinaryOf(program));
    return program;
  }

 private:
  // Null where the driver does not take the binary: it is only a copy of what it can make again.
  Handle FromBinary(const std::string& binary, const std::string& options) const {
    if (binary.empty()) return nullptr;
    const Api& cl = Api::Get();
    const auto* data = reinterpret_cast<const unsigned char*>(binary.data());
    const size_t bytes = binary.size();
    Status taken = kSuccess, status = kSuccess;
    Handle program = cl.clCreateProgramWithBinary(device_->context(), 1, &device_->id, &bytes,
                                                  &data, &taken, &status);
    if (program == nullptr) return nullptr;
    if (status == kSuccess && taken == kSuccess &&
        cl.clBuildProgram(program, 1, &device_->id, options.c_str(), nullptr, nullptr) == kSuccess)
      return program;
    cl.clReleaseProgram(program);
    return nullptr;
  }

  Handle FromSource(const std::string& name, const std::string& source,
                    const std::string& options) const {
    const Api& cl = Api::Get();
    const char* text = source.c_str();
    const size_t length = source.size();
    Status status = kSuccess;
    Handle program =
        cl.clCreateProgramWithSource(device_->context(), 1, &text, &length, &status);
    device_->Check(status, [&] { return "clCreateProgramWithSource for kernel " + name; });
    status = cl.clBuildProgram(program, 1, &device_->id, options.c_str(), nullptr, nullptr);
    if (status == kSuccess) return program;
    const std::string log = BuildLog(program);
    cl.clReleaseProgram(program);
    device_->Check(
        status, [&] { return "Compiling kernel " + name + " for " + device_->Name(); }, false,
        log.empty() ? "" : "the compiler says: " + log);
    return nullptr;
  }

  std::string BuildLog(Handle program) const {
    size_t bytes = 0;
    Api::Get().clGetProgramBuildInfo(program, device_->id, kProgramBuildLog, 0, nullptr, &bytes);
    std::vector<char> raw(bytes);
    if (bytes != 0)
      Api::Get().clGetProgramBuildInfo(program, device_->id, kProgramBuildLog, bytes, raw.data(),
                                       nullptr);
    std::string log = Trimmed(raw);
    if (log.size() > 4000) log = log.substr(0, 4000) + " …";
    return log;
  }

  // Empty where the driver gives none.
  std::string BinaryOf(Handle program) const {
    const Api& cl = Api::Get();
    size_t bytes = 0;
    if (cl.clGetProgramInfo(program, kProgramBinarySizes, sizeof bytes, &bytes, nullptr) != 0)
      return {};
    std::string binary(bytes, '\0');
    char* data = &binary[0];
    if (bytes == 0 ||
        cl.clGetProgramInfo(program, kProgramBinaries, sizeof data, &data, nullptr) != 0)
      return {};
    return binary;
  }

  Device* device_;
  BinaryCache cache_;
};

}  // namespace opencl
}  // namespace bitfabric
