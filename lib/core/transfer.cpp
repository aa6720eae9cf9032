#include "lib/core/transfer.h"

#include <cstring>

namespace dstrain {

namespace {

void copy(void* to, const void* from, std::size_t bytes, Device device, gpu::Queue* queue) {
  if (bytes == 0 || device == Device::dry) return;
  if (device == Device::cpu)
    std::memcpy(to, from, bytes);
  else if (queue)
    queue->copy(to, from, bytes);
  else
    gpu::copy_now(to, from, bytes);
}

gpu::Queue* queue_of(Stream& s) { return s.device() == Device::cuda ? &s.queue() : nullptr; }

}  // namespace

void upload_now(const Tensor& to, const void* from) {
  check(to.contiguous(), "upload to {}", to.to_string());
  copy(to.data, from, to.bytes(), to.device, nullptr);
}

void download_now(void* to, const Tensor& from) {
  check(from.contiguous(), "download of {}", from.to_string());
  copy(to, from.data, from.bytes(), from.device, nullptr);
}

void upload(Stream& stream, const Tensor& to, const void* from) {
  check(to.contiguous(), "upload to {}", to.to_string());
  copy(to.data, from, to.bytes(), stream.device(), queue_of(stream));
}

void download(Stream& stream, void* to, const Tensor& from) {
  check(from.contiguous(), "download of {}", from.to_string());
  copy(to, from.data, from.bytes(), stream.device(), queue_of(stream));
}

}  // namespace dstrain
