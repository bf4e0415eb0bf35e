// The account of a CUDA device's memory, and its bound.
//
// TVM's runtime takes memory by cudaMalloc and gives it back by cudaFree. This library has functions
// of the same names; it is loaded before CUDA's own runtime library, so TVM's calls find these
// first. They count, refuse what would exceed a budget before it is asked of the driver, and hand
// the rest on. What the driver takes for itself (code, the kernels' stacks, graphs) does not come
// this way, so it is told apart from what the program asked for.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "build_key.h"

namespace {

constexpr int kOutOfMemory = 2;  // cudaErrorMemoryAllocation
constexpr int kDevices = 64;

struct Account {
  size_t in_use = 0;
  size_t peak = 0;
  size_t budget = SIZE_MAX;
  size_t refused = 0;  // bytes of the last request that was refused
};

struct Held {
  size_t bytes;
  int device;
};

struct Ledger {
  std::mutex mutex;
  int (*allocate)(void**, size_t) = nullptr;
  int (*free)(void*) = nullptr;
  int (*device)(int*) = nullptr;
  Account accounts[kDevices];
  std::unordered_map<void*, Held> held;

  // Never destroyed: tensors may be freed after the last static destructor has run.
  static Ledger& Get() {
    static Ledger* const ledger = new Ledger();
    return *ledger;
  }
};

}  // namespace

extern "C" {

// Takes CUDA's own functions: cudaMalloc, cudaFree and cudaGetDevice.
void bitfabric_cuda_open(void* allocate, void* free, void* device) {
  Ledger& ledger = Ledger::Get();
  std::lock_guard<std::mutex> lock(ledger.mutex);
  ledger.allocate = reinterpret_cast<int (*)(void**, size_t)>(allocate);
  ledger.free = reinterpret_cast<int (*)(void*)>(free);
  ledger.device = reinterpret_cast<int (*)(int*)>(device);
}

void bitfabric_cuda_budget(int device, uint64_t bytes) {
  if (device < 0 || device >= kDevices) return;
  Ledger& ledger = Ledger::Get();
  std::lock_guard<std::mutex> lock(ledger.mutex);
  ledger.accounts[device].budget = static_cast<size_t>(bytes);
}

void bitfabric_cuda_reset_peak(int device) {
  if (device < 0 || device >= kDevices) return;
  Ledger& ledger = Ledger::Get();
  std::lock_guard<std::mutex> lock(ledger.mutex);
  ledger.accounts[device].peak = ledger.accounts[device].in_use;
}

// Writes in_use, peak, budget, and the bytes of the last request that was refused, which is then
// forgotten.
void bitfabric_cuda_usage(int device, uint64_t* values) {
  if (device < 0 || device >= kDevices) return;
  Ledger& ledger = Ledger::Get();
  std::lock_guard<std::mutex> lock(ledger.mutex);
  Account& account = ledger.accounts[device];
  values[0] = account.in_use;
  values[1] = account.peak;
  values[2] = account.budget;
  values[3] = account.refused;
  account.refused = 0;
}

int cudaMalloc(void** pointer, size_t bytes) {
  Ledger& ledger = Ledger::Get();
  if (ledger.allocate == nullptr) return kOutOfMemory;
  int device = 0;
  if (const int status = ledger.device(&device)) return status;
  // Two threads that ask at once must not both be told that there is room.
  std::lock_guard<std::mutex> lock(ledger.mutex);
  if (device < 0 || device >= kDevices) return ledger.allocate(pointer, bytes);
  Account& account = ledger.accounts[device];
  if (bytes > account.budget || account.in_use > account.budget - bytes) {
    account.refused = bytes;
    return kOutOfMemory;
  }
  const int status = ledger.allocate(pointer, bytes);
  if (status != 0) return status;
  ledger.held[*pointer] = Held{bytes, device};
  account.in_use += bytes;
  account.peak = std::max(account.peak, account.in_use);
  return status;
}

int cudaFree(void* pointer) {
  Ledger& ledger = Ledger::Get();
  if (ledger.free == nullptr) return 0;
  {
    std::lock_guard<std::mutex> lock(ledger.mutex);
    const auto found = ledger.held.find(pointer);
    if (found != ledger.held.end()) {
      ledger.accounts[found->second.device].in_use -= found->second.bytes;
      ledger.held.erase(found);
    }
  }
  return ledger.free(pointer);
}

}  // extern "C"
