// Greedy generation with a bundle in a program of your own: TVM's C++ runtime and nothing else.
//
//   generate BUNDLE [-n COUNT] TOKEN TOKEN ...
//
// prints the COUNT (default 16) tokens that follow, separated by spaces. Tokens are the ids of the
// bundle's tokenizer. model.h, beside this file, was written for this bundle.

#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include "model.h"

namespace ffi = tvm::ffi;
using ffi::Tensor;

constexpr int kPooled = 2;  // The allocator that keeps freed blocks for the next call.

// Asks TVM's runtime for memory of the device, and fills it.
Tensor Upload(const std::vector<int64_t>& shape, const char* dtype, const void* data, size_t bytes) {
  static const ffi::Function allocate =
      ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  static const ffi::Function copy =
      ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
  const DLDataType type = ffi::StringToDLDataType(dtype);
  Tensor tensor = allocate(ffi::Shape(shape), type, kDevice, nullptr).cast<Tensor>();
  copy(tensor, const_cast<void*>(data), static_cast<int64_t>(bytes));
  return tensor;
}

void Download(const Tensor& tensor, void* data, size_t bytes) {
  static const ffi::Function copy =
      ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
  copy(tensor, data, static_cast<int64_t>(bytes));
}

Tensor Zeros(const std::vector<int64_t>& shape, const char* dtype = "float32") {
  size_t count = 1;
  for (int64_t extent : shape) count *= extent;
  std::vector<int32_t> zeros(count);
  return Upload(shape, dtype, zeros.data(), 4 * count);
}

Tensor Integers(const std::vector<int32_t>& values) {
  return Upload({static_cast<int64_t>(values.size())}, "int32", values.data(), 4 * values.size());
}

// Reads the tensors of one weight file.
ffi::Array<Tensor> Load(const std::string& bundle, const WeightFile& weights) {
  std::ifstream file(bundle + "/" + weights.path, std::ios::binary);
  ffi::Array<Tensor> tensors;
  std::vector<char> bytes;
  for (const WeightTensor& tensor : weights.tensors) {
    bytes.resize(tensor.bytes);
    file.seekg(tensor.offset);
    if (!file.read(bytes.data(), bytes.size())) {
      TVM_FFI_THROW(ValueError) << bundle << "/" << weights.path << " can't be read";
    }
    tensors.push_back(Upload(tensor.shape, tensor.dtype, bytes.data(), bytes.size()));
  }
  return tensors;
}

// A model on its device, and the keys and values of one sequence.
class Model {
 public:
  explicit Model(const std::string& bundle) : executable_(Open(bundle + "/module.so")) {
    ffi::Function start = *executable_->GetFunction("vm_initialization");
    if (kDevice.device_type == kDLCPU) {
      start(static_cast<int>(kDLCPU), 0, kPooled);
    } else {
      // The processor comes last: it holds the shapes.
      start(static_cast<int>(kDevice.device_type), kDevice.device_id, kPooled,
            static_cast<int>(kDLCPU), 0, kPooled);
    }
    Build(bundle);
  }

  // Appends tokens and returns the one that most likely follows.
  int32_t Next(const std::vector<int32_t>& tokens) {
    const int32_t count = static_cast<int32_t>(tokens.size());
    if (position_ + count > kCapacity) TVM_FFI_THROW(ValueError) << "the text is too long";
    std::vector<int32_t> positions;
    for (int32_t token = 0; token < count; ++token) positions.push_back(position_++);
    std::vector<ffi::Any> arguments{Integers(tokens), Integers(std::vector<int32_t>(count, 0)),
                                    Integers(positions), Integers({count - 1})};
    arguments.insert(arguments.end(), model_.begin(), model_.end());
    const std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
    ffi::Any result;
    ffi::Function prefill = *executable_->GetFunction("prefill");
    prefill.CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
    std::vector<float> logits(kVocabulary);
    Download(result.cast<Tensor>(), logits.data(), 4 * logits.size());
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  }

 private:
  static ffi::Module Open(const std::string& path) {
    ffi::Module module = ffi::Module::LoadFromFile(path);
    return (*module->GetFunction("vm_load_executable"))().cast<ffi::Module>();
  }

  // Gathers what every call takes after its tokens, in the order of the compiled functions.
  void Build(const std::string& bundle) {
    ffi::Function rope = *executable_->GetFunction("rope_cache");
    model_.push_back(rope(ffi::Shape({kCapacity})));
    for (const Tensor& tensor : Load(bundle, kWeights[0])) model_.push_back(tensor);
    ffi::Array<ffi::Any> layers, adapters, caches;
    for (size_t layer = 1; layer < kWeights.size(); ++layer) {
      layers.push_back(Load(bundle, kWeights[layer]));
      // An adapter that changes nothing. A trained one comes into the weights with `fabric merge`,
      // or its factors are uploaded here.
      ffi::Array<Tensor> factors;
      for (const std::vector<int64_t>& shape : kAdapter) factors.push_back(Zeros(shape));
      adapters.push_back(factors);
      ffi::Array<Tensor> cache;
      for (const CacheTensor& field : kCache) cache.push_back(Zeros(field.shape, field.dtype));
      caches.push_back(cache);
    }
    model_.push_back(layers);
    model_.push_back(adapters);
    model_.push_back(caches);
  }

  ffi::Module executable_;
  std::vector<ffi::Any> model_;
  int32_t position_ = 0;
};

int main(int argc, char** argv) {
  int count = 16;
  std::vector<int32_t> tokens;
  for (int word = 2; word < argc; ++word) {
    if (std::strcmp(argv[word], "-n") == 0 && word + 1 < argc) {
      count = std::atoi(argv[++word]);
    } else {
      tokens.push_back(std::atoi(argv[word]));
    }
  }
  if (tokens.empty()) {
    std::fprintf(stderr, "usage: generate BUNDLE [-n COUNT] TOKEN TOKEN ...\n");
    return 2;
  }
  // Its registrations make the device known; nothing in it is called by name.
  if (*kBackend != '\0' && dlopen(kBackend, RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  try {
    Model model(argv[1]);
    for (int written = 0; written < count; ++written) {
      tokens = {model.Next(tokens)};
      std::printf("%s%d", written == 0 ? "" : " ", tokens[0]);
    }
    std::printf("\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
