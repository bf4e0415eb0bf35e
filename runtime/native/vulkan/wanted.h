// The features that the modules in this process need of their devices.
//
// A logical device gets its features when it is made and can't be given more. Modules are loaded
// before anything is put on a device for them, and each says what it needs: so a device is made
// with what is needed by then, and made anew where more is needed while nothing lives on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace bitfabric {
namespace vulkan {

class WantedFeatures {
 public:
  // Never destroyed: modules may end after the last static destructor has run.
  static WantedFeatures& Get() {
    static WantedFeatures* const wanted = new WantedFeatures();
    return *wanted;
  }

  void Add(const std::vector<std::string>& names) {
    std::lock_guard<std::mutex> lock(mutex_);
    bool more = false;
    for (const std::string& name : names) more = counts_[name]++ == 0 || more;
    if (more) version_.fetch_add(1, std::memory_order_release);
  }
  void Remove(const std::vector<std::string>& names) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const std::string& name : names)
      if (--counts_[name] == 0) counts_.erase(name);
  }
  std::vector<std::string> Names() const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> names;
    for (const auto& entry : counts_) names.push_back(entry.first);
    return names;
  }
  // Grows with each name that comes; never zero.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, size_t> counts_;  // how many ask for it
  std::atomic<uint64_t> version_{1};
};

// Features that are wanted as long as this lives.
class Want {
 public:
  explicit Want(std::vector<std::string> names) : names_(std::move(names)) {
    WantedFeatures::Get().Add(names_);
  }
  ~Want() { WantedFeatures::Get().Remove(names_); }
  Want(const Want&) = delete;
  Want& operator=(const Want&) = delete;

 private:
  const std::vector<std::string> names_;
};

}  // namespace vulkan
}  // namespace bitfabric
