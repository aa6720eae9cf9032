#include "lib/core/arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "lib/core/gpu.h"

namespace dstrain {

namespace {
std::byte* const kDryBase = reinterpret_cast<std::byte*>(0x1000);  // an address that nobody reads
}

Buffer::Buffer(std::string purpose, Device device, std::size_t bytes)
    : purpose_(std::move(purpose)), device_(device), bytes_(bytes) {
  if (device_ == Device::dry) {
    data_ = kDryBase;
    return;
  }
  if (bytes_ == 0) return;
  if (device_ == Device::cuda) {
    data_ = static_cast<std::byte*>(gpu::allocate(bytes_));
    if (!data_) {
      const gpu::MemoryUse use = gpu::memory_use();
      fail(ExitCode::device, "cannot allocate {} bytes of GPU memory for {}: {} of {} bytes are free", bytes_, purpose_,
           use.free, use.total);
    }
    return;
  }
  void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(p != MAP_FAILED, ExitCode::device, "cannot allocate {} bytes of host memory for {}: {}", bytes_, purpose_,
          std::strerror(errno));
  data_ = static_cast<std::byte*>(p);
  madvise(p, bytes_, MADV_HUGEPAGE);  // advice only: fewer TLB misses on large arenas
}

Buffer Buffer::pinned(std::string purpose, std::size_t bytes) {
  Buffer b;
  b.purpose_ = std::move(purpose);
  b.bytes_ = bytes;
  b.pinned_ = true;
  if (bytes == 0) return b;
  b.data_ = static_cast<std::byte*>(gpu::allocate_pinned(bytes));
  require(b.data_ != nullptr, ExitCode::device, "cannot allocate {} bytes of page-locked host memory for {}", bytes,
          b.purpose_);
  return b;
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(purpose_, other.purpose_);
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(pinned_, other.pinned_);
  return *this;
}

Buffer::~Buffer() {
  if (!data_ || device_ == Device::dry) return;
  if (device_ == Device::cuda)
    gpu::release(data_);
  else if (pinned_)
    gpu::release_pinned(data_);
  else
    munmap(data_, bytes_);
}

Arena::Arena(std::string purpose, Device device, std::size_t capacity)
    : purpose_(std::move(purpose)), device_(device), buffer_(purpose_, device, device == Device::dry ? 0 : capacity) {}

Tensor Arena::allocate(const Shape& shape, DType dtype) {
  const std::size_t bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  const std::size_t next = used_ + (bytes + kAlign - 1) / kAlign * kAlign;
  check(device_ == Device::dry || next <= buffer_.bytes(), "arena '{}': {} bytes in use, {} more asked for, {} planned",
        purpose_, used_, bytes, buffer_.bytes());
  Tensor t(buffer_.data() + used_, dtype, device_, shape);
  used_ = next;
  if (used_ > high_water_) high_water_ = used_;
  return t;
}

void Arena::restore(std::size_t mark) {
  check(mark >= used_ && mark <= high_water_, "arena '{}': restore to {}, {} in use, high water {}", purpose_, mark,
        used_, high_water_);
  used_ = mark;
}

void Arena::release(std::size_t mark) {
  check(mark <= used_, "arena '{}': release to {} of {}", purpose_, mark, used_);
  used_ = mark;
}

}  // namespace dstrain
