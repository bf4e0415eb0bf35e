// A driver's library, opened at run time: a machine without the driver still loads this backend.
#pragma once

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include <cstdlib>
#include <string>
#include <vector>

namespace bitfabric {

class DriverLibrary {
 public:
  // Opens the file that the environment variable names, and nothing else where it is set: whoever
  // chooses a driver wants to hear that it is not there, not to get another. Otherwise the first
  // of `names` that opens.
  DriverLibrary(const char* variable, const std::vector<std::string>& names) {
    const char* chosen = std::getenv(variable);
    const bool named = chosen != nullptr && *chosen != '\0';
    for (const std::string& name : named ? std::vector<std::string>{chosen} : names) {
      library_ = Open(name);
      if (library_ != nullptr) {
        name_ = name;
        return;
      }
      tried_ += (tried_.empty() ? "" : ", ") + name;
    }
    if (named) tried_ += std::string(" (from ") + variable + ")";
  }

  bool found() const { return library_ != nullptr; }
  const std::string& name() const { return name_; }
  // The names that did not open, for the error.
  const std::string& tried() const { return tried_; }

  // Returns the address of a function, or null.
  void* Find(const char* function) const {
    if (library_ == nullptr) return nullptr;
#ifdef _WIN32
    return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library_), function));
#else
    return dlsym(library_, function);
#endif
  }

 private:
  static void* Open(const std::string& name) {
#ifdef _WIN32
    return static_cast<void*>(LoadLibraryA(name.c_str()));
#else
    return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
#endif
  }

  void* library_ = nullptr;
  std::string name_;
  std::string tried_;
};

}  // namespace bitfabric
