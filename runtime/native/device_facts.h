// What every device says of itself, whatever its API, asked once when the devices are listed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bitfabric {

// Sizes are in bytes; 0 or an empty list is what an API can't tell.
struct DeviceFacts {
  std::string name, vendor;
  std::string version;  // of the API
  std::string driver;   // the driver's own version
  uint32_t compute_units = 0, clock_mhz = 0;
  size_t global_memory = 0, max_buffer = 0, local_memory = 0, cache = 0;
  size_t max_threads = 1;  // in a group
  size_t alignment = 1;    // of a view's first byte
  std::vector<size_t> max_thread_dimensions, subgroup_sizes;
};

}  // namespace bitfabric
