// Device memory in blocks that are used again.
//
// Small blocks are parts of slabs, one size class a slab. Larger ones are allocations of their own;
// when freed they are kept, up to a bound, and given out again to requests of about their size.
// When an allocation fails, all that is kept goes back to the driver before the error is raised.
//
// A block may be freed while commands that use it still wait in the device's queue. The next owner
// sees the memory only through commands that come later in that same in-order queue, so nothing has
// to wait. Where a backend lets the host write memory in place, it must see to the order itself.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "errors.h"

namespace bitfabric {

class Pool;
struct Arena;
struct Slab;

// What a device tensor's `data` points to. The alignment is what compiled host code may assume of
// any tensor's address.
struct alignas(64) Block {
  void* handle = nullptr;  // the memory object that kernels get: the block and nothing else
  void* root = nullptr;    // the memory object that the block is a part of, or the same
  size_t offset = 0;       // of the block in the root, in bytes
  size_t size = 0;         // bytes that may be used
  size_t asked = 0;        // bytes asked for, for the counters
  uint64_t serial = 0;     // one number a handle, never used twice
  int device = 0;
  Slab* slab = nullptr;
  Arena* arena = nullptr;  // whose the block is, free or not, until that ends
};

// Memory set apart: what a thread allocates while this is its current arena goes back to it when
// freed, and is given out again to the thread while it is current, never to others.
struct Arena {
  Pool* pool = nullptr;
  std::vector<Block*> owned;
  std::vector<Block*> free;

  // The thread's arena, or null.
  static Arena*& Current() {
    static thread_local Arena* current = nullptr;
    return current;
  }
};

inline uint64_t NextSerial() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

// The driver's side of a pool.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  // Returns memory, or null where there is none left. Raises on every other failure.
  virtual void* Create(size_t bytes) = 0;
  virtual void Destroy(void* memory) = 0;
  // Returns an object over a part of memory, to be destroyed before the whole.
  virtual void* Part(void* memory, size_t offset, size_t bytes) = 0;
  // Waits for all commands, so that what was destroyed is really given back.
  virtual void WaitIdle() = 0;
  [[noreturn]] virtual void RaiseOutOfMemory(size_t bytes, size_t in_use, size_t reserved) = 0;
  [[noreturn]] virtual void RaiseOverBudget(size_t bytes, size_t in_use, size_t budget) {
    Raise("Device", Trouble::kOutOfMemory,
          "The memory budget of " + BytesText(budget) + " has no room for " + BytesText(bytes) +
              ": " + BytesText(in_use) + " are in use.");
  }
};

struct Slab {
  void* memory = nullptr;
  size_t used = 0;  // blocks given out
  std::vector<Block> blocks;
};

struct MemoryUsage {
  size_t in_use = 0;    // bytes asked for and not freed
  size_t peak = 0;      // the largest in_use since the last reset
  size_t reserved = 0;  // bytes held from the driver: what is in use, rounding, and what is kept
};

class Pool {
 public:
  static constexpr size_t kSmall = size_t{256} << 10;       // the largest block in a slab
  static constexpr size_t kSlabMost = size_t{2} << 20;      // bytes of a slab
  static constexpr size_t kSlabLeast = size_t{64} << 10;
  static constexpr size_t kPage = 4096;                     // large blocks are multiples of it
  static constexpr size_t kKeepLeast = size_t{64} << 20;    // bounds of what is kept when freed
  static constexpr size_t kKeepMost = size_t{1} << 30;

  // `alignment`: of the parts of an allocation, a power of two. `capacity`: bytes of the device, or
  // 0 where it does not say.
  Pool(MemorySource* source, int device, size_t alignment, size_t capacity)
      : source_(source),
        device_(device),
        granule_(std::max<size_t>(alignment, 256)),
        capacity_(capacity == 0 ? SIZE_MAX : capacity),
        keep_(std::min(std::max(capacity / 8, kKeepLeast), kKeepMost)) {}

  Block* Allocate(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    Arena* const arena = Arena::Current();
    const bool apart = arena != nullptr && arena->pool == this;
    if (bytes > budget_ || usage_.in_use > budget_ - bytes)
      source_->RaiseOverBudget(bytes, usage_.in_use, budget_);
    Block* block = apart ? TakeFrom(&arena->free, bytes) : nullptr;
    if (block == nullptr) {
      block = bytes <= kSmall ? TakeSmall(bytes) : TakeLarge(bytes);
      if (apart) {
        block->arena = arena;
        arena->owned.push_back(block);
      }
    }
    block->asked = bytes;
    usage_.in_use += bytes;
    usage_.peak = std::max(usage_.peak, usage_.in_use);
    return block;
  }

  void Free(Block* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    usage_.in_use -= block->asked;
    if (block->arena != nullptr) {
      block->arena->free.push_back(block);
      return;
    }
    FreeLocked(block);
  }

  // Ends an arena: what is free in it is anybody's again, and the rest will be when it is freed.
  void EndArena(Arena* arena) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Block* block : arena->owned) block->arena = nullptr;
    for (Block* block : arena->free) FreeLocked(block);
    arena->owned.clear();
    arena->free.clear();
  }

  // Gives back to the driver whatever nobody uses; true if there was anything.
  bool ReleaseUnused() {
    std::lock_guard<std::mutex> lock(mutex_);
    return ReleaseLocked();
  }

  MemoryUsage usage() {
    std::lock_guard<std::mutex> lock(mutex_);
    return usage_;
  }
  // From now on no more than so many bytes are in use at once.
  void SetBudget(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    budget_ = bytes;
  }
  void ResetPeak() {
    std::lock_guard<std::mutex> lock(mutex_);
    usage_.peak = usage_.in_use;
  }

 private:
  struct SizeClass {
    size_t size = 0;
    std::vector<Block*> free;  // the last freed is the first used again: it is warm in the cache
    std::vector<std::unique_ptr<Slab>> slabs;
  };

  void FreeLocked(Block* block) {
    if (block->slab != nullptr) {
      FreeSmall(block);
      return;
    }
    kept_.push_back(block);
    kept_bytes_ += block->size;
    while (kept_bytes_ > keep_) DestroyKept(0);
  }

  // Rounds up to 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, … granules: at most a quarter is lost.
  size_t ClassSize(size_t bytes) const {
    const size_t granules = std::max<size_t>((bytes + granule_ - 1) / granule_, 1);
    size_t step = 1;
    while (granules > step * 8) step *= 2;
    return (granules + step - 1) / step * step * granule_;
  }

  Block* TakeSmall(size_t bytes) {
    const size_t size = ClassSize(bytes);
    SizeClass& of_size = classes_[size];
    of_size.size = size;
    if (of_size.free.empty()) AddSlab(&of_size);
    Block* block = of_size.free.back();
    if (block->handle == nullptr) {
      block->handle = source_->Part(block->root, block->offset, size);
      block->serial = NextSerial();
    }
    of_size.free.pop_back();
    ++block->slab->used;
    return block;
  }

  void AddSlab(SizeClass* of_size) {
    const size_t wanted = std::min(std::max(of_size->size * 16, kSlabLeast), kSlabMost);
    const size_t count = std::max<size_t>(wanted / of_size->size, 1);
    auto slab = std::make_unique<Slab>();
    slab->memory = CreateOrRaise(count * of_size->size);
    slab->blocks.resize(count);
    of_size->free.reserve(of_size->free.size() + count);
    for (size_t i = count; i-- > 0;) {
      Block& block = slab->blocks[i];
      block.root = slab->memory;
      block.offset = i * of_size->size;
      block.size = of_size->size;
      block.device = device_;
      block.slab = slab.get();
      of_size->free.push_back(&block);
    }
    of_size->slabs.push_back(std::move(slab));
  }

  void FreeSmall(Block* block) {
    SizeClass& of_size = classes_[block->size];
    of_size.free.push_back(block);
    Slab* slab = block->slab;
    // An empty slab goes when another slab's worth of blocks stays free, so that a size that is
    // used now and then does not make and destroy a slab each time.
    if (--slab->used == 0 && of_size.free.size() >= 2 * slab->blocks.size())
      DestroySlab(&of_size, slab);
  }

  void DestroySlab(SizeClass* of_size, Slab* slab) {
    auto in_slab = [slab](const Block* block) { return block->slab == slab; };
    auto& free = of_size->free;
    free.erase(std::remove_if(free.begin(), free.end(), in_slab), free.end());
    for (const Block& block : slab->blocks)
      if (block.handle != nullptr) source_->Destroy(block.handle);
    source_->Destroy(slab->memory);
    usage_.reserved -= slab->blocks.size() * of_size->size;
    auto& slabs = of_size->slabs;
    slabs.erase(std::find_if(slabs.begin(), slabs.end(),
                             [slab](const auto& each) { return each.get() == slab; }));
  }

  // Takes the smallest block of some that holds the bytes and wastes little; null if there is none.
  static Block* TakeFrom(std::vector<Block*>* from, size_t bytes) {
    size_t best = from->size();
    for (size_t i = 0; i < from->size(); ++i) {
      const size_t has = (*from)[i]->size;
      const bool fits = has >= bytes && (has - bytes <= has / 4 || has <= kPage);
      if (fits && (best == from->size() || has <= (*from)[best]->size)) best = i;
    }
    if (best == from->size()) return nullptr;
    Block* block = (*from)[best];
    from->erase(from->begin() + static_cast<std::ptrdiff_t>(best));
    return block;
  }

  Block* TakeLarge(size_t bytes) {
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    if (Block* block = TakeFrom(&kept_, size)) {
      kept_bytes_ -= block->size;
      return block;
    }
    auto block = std::make_unique<Block>();
    block->handle = block->root = CreateOrRaise(size);
    block->serial = NextSerial();
    block->size = size;
    block->device = device_;
    return block.release();
  }

  void* CreateOrRaise(size_t bytes) {
    void* memory = CreateWithin(bytes);
    if (memory == nullptr && ReleaseLocked()) memory = CreateWithin(bytes);
    if (memory == nullptr) source_->RaiseOutOfMemory(bytes, usage_.in_use, usage_.reserved);
    usage_.reserved += bytes;
    return memory;
  }

  // Drivers promise memory that they find missing only when a kernel runs, where it is too late to
  // say what asked for it; so the device's size is a bound here too.
  void* CreateWithin(size_t bytes) {
    if (bytes > capacity_ || usage_.reserved > capacity_ - bytes) return nullptr;
    return source_->Create(bytes);
  }

  bool ReleaseLocked() {
    const size_t before = usage_.reserved;
    while (!kept_.empty()) DestroyKept(kept_.size() - 1);
    for (auto& entry : classes_) {
      std::vector<Slab*> unused;
      for (const auto& slab : entry.second.slabs)
        if (slab->used == 0) unused.push_back(slab.get());
      for (Slab* slab : unused) DestroySlab(&entry.second, slab);
    }
    if (usage_.reserved == before) return false;
    source_->WaitIdle();
    return true;
  }

  void DestroyKept(size_t index) {
    std::unique_ptr<Block> block(kept_[index]);
    kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(index));
    kept_bytes_ -= block->size;
    usage_.reserved -= block->size;
    source_->Destroy(block->handle);
  }

  MemorySource* source_;
  const int device_;
  const size_t granule_;
  const size_t capacity_;
  const size_t keep_;
  std::mutex mutex_;
  std::unordered_map<size_t, SizeClass> classes_;
  std::vector<Block*> kept_;  // oldest first
  size_t kept_bytes_ = 0;
  size_t budget_ = SIZE_MAX;
  MemoryUsage usage_;
};

}  // namespace bitfabric
