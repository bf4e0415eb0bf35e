// Compiled kernels on disk, so that a driver compiles each only once on a machine.
//
// An entry is one file, named by a hash of its key: a magic, the key in full, a checksum and the
// binary. The key is compared as a whole, so a hash that two keys share costs time, never
// correctness; a file that is cut short or altered is as good as none. Files are written under a
// temporary name and renamed. Entries that nobody has asked for in a season are removed, so that
// those of former drivers go. Nothing here raises: a cache that can't be used is no error.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>

namespace bitfabric {

struct ProgramCounts {
  std::atomic<uint64_t> compiled{0};  // by the driver
  std::atomic<uint64_t> loaded{0};    // from the disk
};

class BinaryCache {
 public:
  // `kind` names the folder within the cache: $BITFABRIC_CACHE, or bitfabric in the user's cache.
  explicit BinaryCache(const char* kind) : folder_(Folder(kind)) {}

  // Returns the binary of a key; empty where there is none.
  std::string Load(const std::string& key) const {
    if (folder_.empty()) return {};
    std::ifstream file(Path(key), std::ios::binary);
    if (!file) return {};
    std::string entry((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const std::string head = Head(key);
    const size_t start = head.size() + sizeof(uint64_t);
    if (entry.size() <= start || entry.compare(0, head.size(), head) != 0) return {};
    uint64_t checksum;
    std::memcpy(&checksum, entry.data() + head.size(), sizeof checksum);
    entry.erase(0, start);
    if (checksum != Hash(entry)) return {};
    std::error_code ignored;
    std::filesystem::last_write_time(Path(key), Clock::now(), ignored);
    return entry;
  }

  void Store(const std::string& key, const std::string& binary) const {
    namespace fs = std::filesystem;
    if (folder_.empty() || binary.empty()) return;
    std::error_code failed;
    fs::create_directories(folder_, failed);
    static std::atomic<bool> pruned{false};
    if (!pruned.exchange(true)) RemoveOld();
    const fs::path path = Path(key), work = Temporary(path);
    {
      std::ofstream file(work, std::ios::binary | std::ios::trunc);
      const uint64_t checksum = Hash(binary);
      const std::string head = Head(key);
      file.write(head.data(), static_cast<std::streamsize>(head.size()));
      file.write(reinterpret_cast<const char*>(&checksum), sizeof checksum);
      file.write(binary.data(), static_cast<std::streamsize>(binary.size()));
      file.flush();
      if (!file) failed = std::make_error_code(std::errc::io_error);
    }
    if (!failed) fs::rename(work, path, failed);
    if (failed) fs::remove(work, failed);
  }

 private:
  using Clock = std::filesystem::file_time_type::clock;

  void RemoveOld() const {
    namespace fs = std::filesystem;
    const auto oldest = Clock::now() - std::chrono::hours(24 * 90);
    std::error_code ignored;
    for (fs::directory_iterator at(folder_, ignored), end; at != end; at.increment(ignored)) {
      const auto used = fs::last_write_time(at->path(), ignored);
      if (!ignored && used < oldest) fs::remove(at->path(), ignored);
    }
  }

  static std::filesystem::path Folder(const char* kind) {
    namespace fs = std::filesystem;
    auto variable = [](const char* name) {
      const char* value = std::getenv(name);
      return value == nullptr ? fs::path() : fs::path(value);
    };
    fs::path base = variable("BITFABRIC_CACHE");
    if (base.empty()) {
      base = variable("XDG_CACHE_HOME");
#ifdef _WIN32
      if (base.empty() && !variable("USERPROFILE").empty())
        base = variable("USERPROFILE") / ".cache";
#endif
      if (base.empty() && !variable("HOME").empty()) base = variable("HOME") / ".cache";
      if (base.empty()) return {};  // an app on a phone, say: no folder, no cache
      base /= "bitfabric";
    }
    return base / kind;
  }

  // FNV-1a, 64 bits.
  static uint64_t Hash(const std::string& text) {
    uint64_t hash = 14695981039346656037u;
    for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    return hash;
  }

  static std::string Head(const std::string& key) {
    const uint64_t bytes = key.size();
    std::string head = "bitfabric binary 1\n";
    head.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
    return head + key;
  }

  std::filesystem::path Path(const std::string& key) const {
    static const char kDigits[] = "0123456789abcdef";
    std::string name;
    const uint64_t hash = Hash(key);
    for (int shift = 60; shift >= 0; shift -= 4) name += kDigits[(hash >> shift) & 15];
    return folder_ / (name + ".bin");
  }

  // A name that no other thread takes, nor another process: the clock and an address that the
  // loader randomises tell them apart, and the checksum catches the rest.
  static std::filesystem::path Temporary(std::filesystem::path path) {
    static std::atomic<unsigned> count{0};
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    path += "." + std::to_string(now) + "." +
            std::to_string(reinterpret_cast<uintptr_t>(&count)) + "." + std::to_string(++count) +
            ".tmp";
    return path;
  }

  const std::filesystem::path folder_;
};

}  // namespace bitfabric
