// The kernels of a module.
#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "container.h"
#include "kernel.h"
#include "wanted.h"

namespace bitfabric {
namespace vulkan {

class Code {
 public:
  explicit Code(const ModuleBytes& module)
      : kernels_(ReadContainer(module.code)), want_(NeededBy(kernels_)) {}

  // The code is binary, so what is shown of it is a list: a kernel, its SPIR-V and what it needs.
  std::string Source() const {
    std::vector<std::string> lines;
    for (const auto& [name, kernel] : kernels_) {
      std::string line = name + ": " + std::to_string(kernel.spirv.size()) + " words, " +
                         (kernel.descriptors ? "descriptors" : "addresses");
      for (const std::string& feature : kernel.features) line += ", " + feature;
      lines.push_back(line + "\n");
    }
    std::sort(lines.begin(), lines.end());
    std::string text;
    for (const std::string& line : lines) text += line;
    return text;
  }

  std::unique_ptr<Kernel> Make(const KernelInfo& info, size_t devices) const {
    const auto code = kernels_.find(info.name);
    if (code == kernels_.end()) {
      TVM_FFI_THROW(ValueError) << "The Vulkan module lists kernel " << info.name
                                << " but has no code of it.";
    }
    return std::make_unique<Kernel>(info, code->second, kernels_, devices);
  }

 private:
  static std::vector<std::string> NeededBy(const KernelCodes& kernels) {
    std::set<std::string> names;
    for (const auto& entry : kernels)
      names.insert(entry.second.features.begin(), entry.second.features.end());
    return {names.begin(), names.end()};
  }

  const KernelCodes kernels_;
  const Want want_;
};

}  // namespace vulkan
}  // namespace bitfabric
