// posix_memalign for MinGW, which TVM's header calls and frees by free(). What malloc aligns is all
// that our objects ask for; more is refused, since memory of _aligned_malloc is not freed so.
#pragma once

#ifdef __MINGW32__
#include <cerrno>
#include <cstddef>
#include <cstdlib>

inline int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  if (alignment > alignof(std::max_align_t)) return EINVAL;
  *memory = std::malloc(bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
#endif
