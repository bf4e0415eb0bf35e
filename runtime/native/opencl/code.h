// The OpenCL C of a module, kernel by kernel.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "../module_format.h"
#include "kernel.h"

namespace bitfabric {
namespace opencl {

// Splits a module's code into the source of each kernel, so that only what is launched is compiled.
// The compiler puts a line "// Function: NAME" before each, and after it the prototypes of every
// kernel of the module: they go, for a compiler would read them all again for each kernel, and a
// change to any kernel would change the key of every other.
inline std::unordered_map<std::string, std::string> SplitSource(const std::string& code) {
  static const std::string kMark = "// Function: ", kPrototype = "__kernel void ", kEnd = ");";
  std::unordered_map<std::string, std::string> sources;
  std::string* source = nullptr;
  for (size_t start = 0; start < code.size();) {
    size_t end = code.find('\n', start);
    if (end == std::string::npos) end = code.size();
    const size_t length = end - start;
    const bool prototype = code.compare(start, kPrototype.size(), kPrototype) == 0 &&
                           code.compare(end - kEnd.size(), kEnd.size(), kEnd) == 0;
    if (code.compare(start, kMark.size(), kMark) == 0) {
      source = &sources[code.substr(start + kMark.size(), length - kMark.size())];
    } else if (source != nullptr && !prototype) {
      source->append(code, start, length).push_back('\n');
    }
    start = end + 1;
  }
  return sources;
}

class Code {
 public:
  explicit Code(const ModuleBytes& module) : text_(module.code) {}

  const std::string& Source() const { return text_; }

  std::unique_ptr<Kernel> Make(const KernelInfo& info, size_t devices) {
    if (sources_.empty()) sources_ = SplitSource(text_);
    const auto source = sources_.find(info.name);
    if (source == sources_.end()) {
      TVM_FFI_THROW(ValueError) << "The OpenCL module lists kernel " << info.name
                                << " but has no source of it.";
    }
    return std::make_unique<Kernel>(info, source->second, devices);
  }

 private:
  const std::string& text_;
  std::unordered_map<std::string, std::string> sources_;
};

}  // namespace opencl
}  // namespace bitfabric
