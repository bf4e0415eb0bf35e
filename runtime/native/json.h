// A JSON writer for the few records that the native side reports.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace bitfabric {

inline std::string JsonText(const std::string& value) {
  std::string out = "\"";
  for (char c : value) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20 || u >= 0x7f) {
      // Drivers report names in any encoding: byte for byte as Latin-1 is valid JSON in any case.
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(u));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

class JsonObject {
 public:
  JsonObject& Text(const char* key, const std::string& value) { return Raw(key, JsonText(value)); }
  JsonObject& Number(const char* key, uint64_t value) { return Raw(key, std::to_string(value)); }
  JsonObject& Flag(const char* key, bool value) { return Raw(key, value ? "true" : "false"); }
  JsonObject& Numbers(const char* key, const std::vector<size_t>& values) {
    std::string list;
    for (size_t value : values) list += (list.empty() ? "" : ", ") + std::to_string(value);
    return Raw(key, "[" + list + "]");
  }
  JsonObject& Texts(const char* key, const std::vector<std::string>& values) {
    std::string list;
    for (const std::string& value : values) list += (list.empty() ? "" : ", ") + JsonText(value);
    return Raw(key, "[" + list + "]");
  }
  // A value that is JSON already.
  JsonObject& Raw(const char* key, const std::string& value) {
    body_ += (body_.empty() ? "" : ", ") + JsonText(key) + ": " + value;
    return *this;
  }
  std::string str() const { return "{" + body_ + "}"; }

 private:
  std::string body_;
};

}  // namespace bitfabric
