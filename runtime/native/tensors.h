// What tensors need beyond TVM's device API: views over a part, and writes that do not wait.
#pragma once

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>

#include <algorithm>
#include <utility>

#include "module_format.h"
#include "pool.h"
#include "staging.h"

namespace bitfabric {

// A view's own memory object over a part of another tensor's, which it keeps alive.
template <typename Backend>
class ViewMemory {
 public:
  ViewMemory(ffi::Tensor parent, size_t offset) : parent_(std::move(parent)), offset_(offset) {}

  void AllocData(DLTensor* view) {
    const Block& whole = *static_cast<const Block*>(parent_.data_ptr());
    auto& device = Backend::Devices::Get().At(whole.device);
    const size_t bytes = ffi::GetDataSize(*view);
    auto* part = new Block();
    part->root = whole.root;
    // No memory object is empty: a view of nothing gets the first byte.
    part->offset = whole.offset + (bytes == 0 ? 0 : offset_);
    part->size = std::max<size_t>(bytes, 1);
    part->device = whole.device;
    try {
      // Of the root: an API need not have parts of parts.
      part->handle = device.Part(whole.root, part->offset, part->size);
    } catch (...) {
      delete part;
      throw;
    }
    part->serial = NextSerial();
    view->data = part;
  }
  void FreeData(DLTensor* view) {
    auto* part = static_cast<Block*>(view->data);
    Backend::Devices::Get().At(part->device).Destroy(part->handle);
    delete part;
  }

 private:
  ffi::Tensor parent_;
  size_t offset_;
};

// Raises unless the bytes lie within a tensor on one of the API's devices, and returns their place
// in its block.
template <typename Backend>
size_t PlaceIn(const DLTensor& tensor, int64_t byte_offset, int64_t bytes) {
  const size_t has = ffi::GetDataSize(tensor);
  const bool within = byte_offset >= 0 && bytes >= 0 && static_cast<size_t>(bytes) <= has &&
                      static_cast<size_t>(byte_offset) <= has - static_cast<size_t>(bytes);
  if (tensor.device.device_type != Backend::kType || !ffi::IsContiguous(tensor) || !within) {
    TVM_FFI_THROW(ValueError) << bytes << " bytes at byte " << byte_offset
                              << " do not lie within a contiguous " << Backend::kName
                              << " tensor of " << has << " bytes.";
  }
  return tensor.byte_offset + static_cast<size_t>(byte_offset);
}

// A tensor over a part of another's memory, as a memory object of its own: kernels take a tensor
// from its first byte on.
template <typename Backend>
ffi::Tensor View(const ffi::Tensor& tensor, int64_t byte_offset, const ffi::Shape& shape,
                 DLDataType dtype) {
  const DLTensor* whole = tensor.GetDLTensorPtr();
  const size_t bytes = ffi::GetDataSize(static_cast<size_t>(shape.Product()), dtype);
  const size_t offset = PlaceIn<Backend>(*whole, byte_offset, static_cast<int64_t>(bytes));
  const auto& device = Backend::Devices::Get().At(whole->device.device_id);
  if (offset % device.info.alignment != 0) {
    TVM_FFI_THROW(ValueError) << "A view on " << device.Name() << " must start at a multiple of "
                              << device.info.alignment << " bytes, not at " << offset << ".";
  }
  return ffi::Tensor::FromNDAlloc(ViewMemory<Backend>(tensor, offset), shape, dtype,
                                  whole->device);
}

// Copies host memory to a part of a tensor and does not wait. Up to 64 KiB are copied at once; more
// must stay as it is until the device's next synchronisation.
template <typename Backend>
void Write(const ffi::Tensor& tensor, int64_t byte_offset, void* from, int64_t bytes) {
  const DLTensor* to = tensor.GetDLTensorPtr();
  const size_t place = PlaceIn<Backend>(*to, byte_offset, bytes);
  if (bytes == 0) return;
  Backend::Devices::Get()
      .At(to->device.device_id)
      .Write(*static_cast<const Block*>(to->data), place, from, static_cast<size_t>(bytes),
             static_cast<size_t>(bytes) > kStagedMost);
}

// Fills a tensor with zero bytes and does not wait.
template <typename Backend>
void Clear(const ffi::Tensor& tensor) {
  const DLTensor* to = tensor.GetDLTensorPtr();
  const size_t bytes = ffi::GetDataSize(*to);
  const size_t place = PlaceIn<Backend>(*to, 0, static_cast<int64_t>(bytes));
  if (bytes == 0) return;
  Backend::Devices::Get()
      .At(to->device.device_id)
      .Clear(*static_cast<const Block*>(to->data), place, bytes);
}

}  // namespace bitfabric
