// One launch of a kernel: what is enqueued now, or again.
#pragma once

#include <string>
#include <vector>

#include "../arguments.h"
#include "device.h"

namespace bitfabric {
namespace hip {

struct Launch {
  const std::string* name = nullptr;  // the kernel's, which outlives this
  Handle function = nullptr;
  WorkSize work;
  std::vector<char> arguments;

  // The library copies the arguments before it returns.
  void Enqueue(Device* device) {
    size_t size = arguments.size();
    void* described[] = {LaunchWord(kLaunchBuffer), arguments.data(), LaunchWord(kLaunchSize),
                         &size, LaunchWord(kLaunchEnd)};
    auto number = [](size_t extent) { return static_cast<unsigned>(extent); };
    const size_t(&groups)[3] = work.groups;
    const size_t(&threads)[3] = work.threads;
    const Status status = device->Submit([&](Handle stream) {
      return Api::Get().hipModuleLaunchKernel(
          function, number(groups[0]), number(groups[1]), number(groups[2]), number(threads[0]),
          number(threads[1]), number(threads[2]), 0, stream, nullptr, described);
    });
    Device::Check(status, [&] { return LaunchText(*name, work, device->Name()); });
  }
};

}  // namespace hip
}  // namespace bitfabric
