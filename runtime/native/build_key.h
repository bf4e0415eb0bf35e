// What a library was built for, found in the file's bytes before it is opened.
#pragma once

#ifndef BITFABRIC_BUILD_KEY
#define BITFABRIC_BUILD_KEY "none"
#endif
extern "C" {
#ifdef _WIN32
__declspec(dllexport)
#endif
extern const char bitfabric_build_key[];
const char bitfabric_build_key[] = "bitfabric build key: " BITFABRIC_BUILD_KEY ".";
}
