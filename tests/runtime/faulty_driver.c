/* The installed OpenCL driver, with calls that fail when the environment says so. A function that is
   not defined here is found in the library that this one is linked with. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

static int fault(const char* name) {
  const char* value = getenv(name);
  return value == NULL ? 0 : atoi(value);
}

/* FAULT_LAUNCH_ONCE: the first launch fails with this status. FAULT_LAUNCH: all do, or all after
   the first FAULT_LAUNCH_AFTER. */
int clEnqueueNDRangeKernel(void* queue, void* kernel, unsigned dimensions, const size_t* offset,
                           const size_t* all, const size_t* group, unsigned waits,
                           const void* list, void* event) {
  static int launches = 0;
  const int before = launches++;
  if (fault("FAULT_LAUNCH") && before >= fault("FAULT_LAUNCH_AFTER")) return fault("FAULT_LAUNCH");
  if (fault("FAULT_LAUNCH_ONCE") && before == 0) return fault("FAULT_LAUNCH_ONCE");
  int (*real)(void*, void*, unsigned, const size_t*, const size_t*, const size_t*, unsigned,
              const void*, void*) = dlsym(RTLD_NEXT, "clEnqueueNDRangeKernel");
  return real(queue, kernel, dimensions, offset, all, group, waits, list, event);
}

/* FAULT_FINISH: waiting fails with this status, once the file that FAULT_WHEN names is there: a
   process whose threads read the environment can't change it. */
int clFinish(void* queue) {
  const char* when = getenv("FAULT_WHEN");
  if (fault("FAULT_FINISH") && (when == NULL || access(when, F_OK) == 0))
    return fault("FAULT_FINISH");
  int (*real)(void*) = dlsym(RTLD_NEXT, "clFinish");
  return real(queue);
}

/* FAULT_MEMORY: so many bytes are there; a buffer beyond them fails. */
static size_t held = 0;
static void* buffers[4096];
static size_t sizes[4096];

void* clCreateBuffer(void* context, uint64_t flags, size_t size, void* host, int* status) {
  if (fault("FAULT_MEMORY") && held + size > (size_t)fault("FAULT_MEMORY")) {
    *status = -4;
    return NULL;
  }
  void* (*real)(void*, uint64_t, size_t, void*, int*) = dlsym(RTLD_NEXT, "clCreateBuffer");
  void* buffer = real(context, flags, size, host, status);
  for (int i = 0; i < 4096 && buffer != NULL; ++i) {
    if (buffers[i] == NULL) {
      buffers[i] = buffer;
      sizes[i] = size;
      held += size;
      break;
    }
  }
  return buffer;
}

int clReleaseMemObject(void* buffer) {
  for (int i = 0; i < 4096; ++i) {
    if (buffers[i] == buffer) {
      buffers[i] = NULL;
      held -= sizes[i];
      break;
    }
  }
  int (*real)(void*) = dlsym(RTLD_NEXT, "clReleaseMemObject");
  return real(buffer);
}
