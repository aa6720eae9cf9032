#pragma once
// Memory by named purpose. Buffer owns one block; Arena hands out pieces of one, as a stack. On Device::dry both count
// and own nothing, so that the sizes that a plan prints are the sizes that a run allocates.

#include <cstddef>
#include <string>

#include "lib/core/device.h"
#include "lib/core/tensor.h"

namespace dstrain {

// Owns `bytes` bytes, zeroed, 4096-byte aligned (device memory: 256). Throws Error{device} naming the purpose when
// memory is short. Device memory is the calling thread's current device's.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::string purpose, Device device, std::size_t bytes);
  // Page-locked host memory for copies to and from a GPU that run beside other work.
  static Buffer pinned(std::string purpose, std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  const std::string& purpose() const { return purpose_; }

 private:
  std::string purpose_;
  Device device_ = Device::cpu;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  bool pinned_ = false;
};

// A stack allocator over one Buffer. Not thread-safe.
class Arena {
 public:
  static constexpr std::size_t kAlign = 256;  // bytes; every piece starts at a multiple

  Arena() = default;
  // A dry arena ignores `capacity`, only counts, and never runs out.
  Arena(std::string purpose, Device device, std::size_t capacity);

  // A piece with unspecified contents, valid until released below it. Throws Error{bug} naming purpose, need and
  // capacity when it does not fit: the dry run that sized the arena took another path.
  Tensor allocate(const Shape& shape, DType dtype = DType::f32);
  std::size_t mark() const { return used_; }
  // Frees everything allocated since `mark`.
  void release(std::size_t mark);
  // Takes again what allocations up to `mark` once took, for work that is replayed instead of run.
  void restore(std::size_t mark);

  std::size_t used() const { return used_; }
  std::size_t high_water() const { return high_water_; }
  std::size_t capacity() const { return buffer_.bytes(); }
  const std::string& purpose() const { return purpose_; }
  Device device() const { return device_; }

 private:
  std::string purpose_;
  Device device_ = Device::cpu;
  Buffer buffer_;
  std::size_t used_ = 0;
  std::size_t high_water_ = 0;
};

// Releases what was allocated from an arena during a scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  std::size_t mark_;
};

}  // namespace dstrain
