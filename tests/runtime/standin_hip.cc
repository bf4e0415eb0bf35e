// A libamdhip64 without a graphics processor: what ROCm's library does with memory, streams, events
// and modules, as lazily as it may. Device memory is host memory that nobody else has; commands run
// only when somebody waits, so whoever lets go too early of what a command reads is found out. A
// launch is handed to a function that the test sets. Everything that runs is written to a trace.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

enum { kSuccess = 0, kInvalid = 1, kOutOfMemory = 2, kNoBinary = 209, kNotFound = 500 };

using Launched = int (*)(const char* name, const unsigned* groups, const unsigned* threads,
                         const void* arguments, size_t bytes);

struct Event {
  bool recorded = false, done = false;
  double time = 0;  // microseconds
};
struct Module {
  std::string image;
  bool loaded = true;
};
struct Function {
  Module* module;
  std::string name;
};
struct Allocation {
  size_t bytes;
  int number;
};

std::recursive_mutex mutex;
std::map<char*, Allocation> memory;
size_t held = 0;
int allocated = 0, launches = 0, status_of_stream = kSuccess;
double now = 0;
std::deque<std::function<void()>> waiting;
std::vector<std::unique_ptr<Module>> modules;
std::vector<std::unique_ptr<Function>> functions;
Launched launched = nullptr;

long Number(const char* name, long otherwise = 0) {
  const char* value = getenv(name);
  return value == nullptr ? otherwise : atol(value);
}
std::string Text(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value == nullptr ? otherwise : value;
}

void Trace(const std::string& line) {
  static FILE* const file = [] {
    const char* path = getenv("STANDIN_TRACE");
    return path == nullptr ? nullptr : fopen(path, "w");
  }();
  if (file == nullptr) return;
  fprintf(file, "%s\n", line.c_str());
  fflush(file);
}

// "3+256": a place in the third allocation; empty where the bytes lie in none that is there.
std::string Place(const void* address, size_t bytes) {
  char* at = static_cast<char*>(const_cast<void*>(address));
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return {};
  const auto& [begin, allocation] = *std::prev(after);
  const size_t offset = static_cast<size_t>(at - begin);
  if (offset > allocation.bytes || bytes > allocation.bytes - offset) return {};
  return std::to_string(allocation.number) + "+" + std::to_string(offset);
}

int Refuse(const std::string& why) {
  Trace("refused " + why);
  return kInvalid;
}

// FNV-1a.
std::string Hash(const void* data, size_t bytes) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < bytes; ++i)
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  char text[17];
  snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

int Run() {
  while (!waiting.empty()) {
    waiting.front()();
    waiting.pop_front();
  }
  return status_of_stream;
}

// The number that an architecture has in a code object's flags (LLVM, "AMDGPU Usage", e_flags).
unsigned Machine(const std::string& architecture) {
  static const std::map<std::string, unsigned> kNumbers = {
      {"gfx906", 0x2f}, {"gfx90a", 0x3f}, {"gfx942", 0x4c},
      {"gfx1030", 0x36}, {"gfx1100", 0x41}, {"gfx1200", 0x48}};
  const auto found = kNumbers.find(architecture.substr(0, architecture.find(':')));
  return found == kNumbers.end() ? 0 : found->second;
}

std::string Architecture() { return Text("STANDIN_ARCHITECTURE", "gfx90a:sramecc+:xnack-"); }

}  // namespace

extern "C" {

void standin_on_launch(Launched function) { launched = function; }

// The bytes from an address to the end of its allocation; 0 where there is none.
size_t standin_extent(const void* address) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  char* at = static_cast<char*>(const_cast<void*>(address));
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return 0;
  const auto& [begin, allocation] = *std::prev(after);
  const size_t offset = static_cast<size_t>(at - begin);
  return offset < allocation.bytes ? allocation.bytes - offset : 0;
}

int hipInit(unsigned) { return static_cast<int>(Number("STANDIN_INIT")); }
const char* hipGetErrorName(int status) {
  switch (status) {
    case kOutOfMemory: return "hipErrorOutOfMemory";
    case kNoBinary: return "hipErrorNoBinaryForGpu";
    case kNotFound: return "hipErrorNotFound";
    case 719: return "hipErrorLaunchFailure";
    case 3: return "hipErrorNotInitialized";
    default: return "hipErrorInvalidValue";
  }
}
int hipGetDeviceCount(int* count) {
  *count = static_cast<int>(Number("STANDIN_DEVICES", 1));
  return *count == 0 ? 100 : kSuccess;
}
int hipRuntimeGetVersion(int* version) {
  *version = 60342134;
  return kSuccess;
}
// The fields stand where HIP's header of version 6 has them.
int hipGetDevicePropertiesR0600(void* properties, int) {
  char* bytes = static_cast<char*>(properties);
  std::memset(bytes, 0, 1472);
  auto put = [&](size_t at, int value) { std::memcpy(bytes + at, &value, sizeof value); };
  auto size = [&](size_t at, size_t value) { std::memcpy(bytes + at, &value, sizeof value); };
  std::strcpy(bytes, Text("STANDIN_NAME", "AMD Instinct MI250X").c_str());
  size(288, static_cast<size_t>(Number("STANDIN_MEMORY", 1l << 32)));
  size(296, 65536);
  const std::string architecture = Architecture();
  put(308, architecture.compare(0, 4, "gfx9") == 0 ? 64 : 32);
  put(320, 1024);
  for (size_t axis = 0; axis < 3; ++axis) put(324 + 4 * axis, 1024);
  put(348, 1700000);
  put(388, 110);
  put(616, 8 << 20);
  std::strcpy(bytes + 1160, architecture.c_str());
  return kSuccess;
}
int hipSetDevice(int device) { return device < Number("STANDIN_DEVICES", 1) ? kSuccess : 101; }

int hipStreamCreateWithFlags(void** stream, unsigned) {
  *stream = &waiting;
  return kSuccess;
}
int hipStreamSynchronize(void*) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  return Run();
}

int hipMalloc(void** address, size_t bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const size_t most = static_cast<size_t>(Number("FAULT_MEMORY", 1l << 40));
  if (bytes > most || held > most - bytes) return kOutOfMemory;
  char* made = static_cast<char*>(aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
  if (made == nullptr) return kOutOfMemory;
  std::memset(made, 0xA5, bytes);
  memory[made] = {bytes, ++allocated};
  held += bytes;
  Trace("allocate " + std::to_string(allocated) + " " + std::to_string(bytes));
  *address = made;
  return kSuccess;
}
int hipFree(void* address) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto found = memory.find(static_cast<char*>(address));
  if (found == memory.end()) return Refuse("hipFree of what is no allocation");
  Run();
  Trace("free " + std::to_string(found->second.number));
  held -= found->second.bytes;
  std::memset(address, 0x5A, found->second.bytes);
  memory.erase(found);
  free(address);
  return kSuccess;
}

int hipMemcpyHtoDAsync(void* to, const void* from, size_t bytes, void*) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const std::string place = Place(to, bytes);
  if (place.empty()) return Refuse("a write outside of memory");
  waiting.push_back([=] {
    std::memcpy(to, from, bytes);
    Trace("write " + place + " " + std::to_string(bytes) + " " + Hash(from, bytes));
  });
  return kSuccess;
}
int hipMemcpyDtoHAsync(void* to, void* from, size_t bytes, void*) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const std::string place = Place(from, bytes);
  if (place.empty()) return Refuse("a read outside of memory");
  waiting.push_back([=] {
    std::memcpy(to, from, bytes);
    Trace("read " + place + " " + std::to_string(bytes) + " " + Hash(from, bytes));
  });
  return kSuccess;
}
int hipMemcpyDtoDAsync(void* to, void* from, size_t bytes, void*) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const std::string source = Place(from, bytes), target = Place(to, bytes);
  if (source.empty() || target.empty()) return Refuse("a copy outside of memory");
  waiting.push_back([=] {
    std::memmove(to, from, bytes);
    Trace("copy " + source + " " + target + " " + std::to_string(bytes));
  });
  return kSuccess;
}
int hipMemsetD8Async(void* to, unsigned char value, size_t bytes, void*) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const std::string place = Place(to, bytes);
  if (place.empty()) return Refuse("a fill outside of memory");
  waiting.push_back([=] {
    std::memset(to, value, bytes);
    Trace("fill " + place + " " + std::to_string(bytes) + " " + std::to_string(value));
  });
  return kSuccess;
}

int hipEventCreateWithFlags(void** event, unsigned) {
  *event = new Event();
  return kSuccess;
}
int hipEventRecord(void* event, void*) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto* recorded = static_cast<Event*>(event);
  recorded->recorded = true;
  waiting.push_back([recorded] {
    recorded->done = true;
    recorded->time = now;
  });
  return kSuccess;
}
int hipEventSynchronize(void* event) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto* wanted = static_cast<Event*>(event);
  if (!wanted->recorded) return Refuse("a wait for an event that is in no stream");
  while (!wanted->done && !waiting.empty()) {
    waiting.front()();
    waiting.pop_front();
  }
  return status_of_stream;
}
int hipEventElapsedTime(float* milliseconds, void* start, void* stop) {
  const auto *first = static_cast<Event*>(start), *last = static_cast<Event*>(stop);
  if (!first->done || !last->done) return 600;
  *milliseconds = static_cast<float>((last->time - first->time) / 1000);
  return kSuccess;
}
int hipEventDestroy(void* event) {
  auto* gone = static_cast<Event*>(event);
  if (gone->recorded && !gone->done) return Refuse("an event destroyed before it is reached");
  delete gone;
  return kSuccess;
}

// A code object for this architecture, as an ELF header says it.
int hipModuleLoadData(void** module, const void* image) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto* bytes = static_cast<const unsigned char*>(image);
  auto read = [&](size_t at, size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, bytes + at, size);
    return value;
  };
  const bool elf = std::memcmp(bytes, "\177ELF\2\1", 6) == 0 && read(18, 2) == 224;
  if (!elf || (read(48, 4) & 0xff) != Machine(Architecture())) return kNoBinary;
  const size_t size = read(40, 8) + read(58, 2) * read(60, 2);
  modules.push_back(std::make_unique<Module>());
  modules.back()->image.assign(static_cast<const char*>(image), size);
  Trace("load " + std::to_string(size) + " " + Hash(image, size));
  *module = modules.back().get();
  return kSuccess;
}
int hipModuleUnload(void* module) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  Run();
  static_cast<Module*>(module)->loaded = false;
  return kSuccess;
}
int hipModuleGetFunction(void** function, void* module, const char* name) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto* of = static_cast<Module*>(module);
  // A kernel's descriptor is a symbol of its name and ".kd".
  const std::string symbol = '\0' + std::string(name) + ".kd" + '\0';
  if (of->image.find(symbol) == std::string::npos) return kNotFound;
  functions.push_back(std::make_unique<Function>(Function{of, name}));
  *function = functions.back().get();
  return kSuccess;
}
int hipModuleLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned tx,
                          unsigned ty, unsigned tz, unsigned shared, void*, void** separate,
                          void** block) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (const long status = Number("FAULT_LAUNCH"); status != 0)
    if (launches++ >= Number("FAULT_LAUNCH_AFTER")) return static_cast<int>(status);
  auto* kernel = static_cast<Function*>(function);
  if (!kernel->module->loaded) return Refuse("a kernel of a module that is unloaded");
  if (shared != 0 || separate != nullptr) return Refuse("another form of arguments");
  const uint64_t threads = uint64_t{tx} * ty * tz;
  // The code objects say that they are for 256 threads at most.
  if (threads == 0 || threads > 256 || gx == 0 || gy == 0 || gz == 0) return 9;
  const char* arguments = nullptr;
  size_t bytes = 0;
  for (void** word = block; *word != reinterpret_cast<void*>(3); word += 2) {
    if (word[0] == reinterpret_cast<void*>(1)) arguments = static_cast<char*>(word[1]);
    if (word[0] == reinterpret_cast<void*>(2)) bytes = *static_cast<size_t*>(word[1]);
  }
  std::string kept(arguments, bytes);
  waiting.push_back([=] {
    const unsigned sizes[6] = {gx, gy, gz, tx, ty, tz};
    std::string line = "launch " + kernel->name;
    for (unsigned size : sizes) line += " " + std::to_string(size);
    Trace(line + " " + Hash(kept.data(), kept.size()));
    now += 10;
    if (launched == nullptr) return;
    const int status = launched(kernel->name.c_str(), sizes, sizes + 3, kept.data(), kept.size());
    if (status != kSuccess) status_of_stream = status;
  });
  return kSuccess;
}

}  // extern "C"
