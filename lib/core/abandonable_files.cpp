#include "lib/core/abandonable_files.h"

#include <cerrno>
#include <chrono>
#include <thread>
#include <type_traits>
#include <utility>

namespace dstrain {

void AbandonableFiles::abandon(const std::string& why) {
  const std::scoped_lock lock(mutex_);
  why_ = why;
  state_ = State::abandoned;
}

void AbandonableFiles::check_open() const {
  if (state_ == State::open) return;
  while (state_ == State::parked) std::this_thread::sleep_for(std::chrono::hours(1));
  const std::scoped_lock lock(mutex_);
  throw FileError(ExitCode::write, why_, ETIMEDOUT);
}

template <class Call>
auto AbandonableFiles::guard(Call call) const {
  check_open();
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    check_open();
  } else {
    auto result = call();
    check_open();
    return result;
  }
}

class AbandonableFiles::Guarded final : public File {
 public:
  Guarded(const AbandonableFiles& owner, std::unique_ptr<File> real) : owner_(owner), real_(std::move(real)) {}
  void pread(std::span<std::byte> into, std::uint64_t offset) const override {
    owner_.guard([&] { real_->pread(into, offset); });
  }
  void pwrite(std::span<const std::byte> from, std::uint64_t offset) override {
    owner_.guard([&] { real_->pwrite(from, offset); });
  }
  std::uint64_t size() const override {
    return owner_.guard([&] { return real_->size(); });
  }
  void truncate(std::uint64_t size) override {
    owner_.guard([&] { real_->truncate(size); });
  }
  void sync() override {
    owner_.guard([&] { real_->sync(); });
  }
  void close() override {
    owner_.guard([&] { real_->close(); });
  }
  FileLock try_lock() override {
    return owner_.guard([&] { return real_->try_lock(); });
  }
  void forget() const override {
    owner_.guard([&] { real_->forget(); });
  }

 private:
  const AbandonableFiles& owner_;
  std::unique_ptr<File> real_;
};

std::unique_ptr<File> AbandonableFiles::open(const std::string& path, OpenMode mode) const {
  return std::make_unique<Guarded>(*this, guard([&] { return real_.open(path, mode); }));
}
void AbandonableFiles::rename(const std::string& from, const std::string& to) const {
  guard([&] { real_.rename(from, to); });
}
void AbandonableFiles::remove(const std::string& path) const {
  guard([&] { real_.remove(path); });
}
void AbandonableFiles::make_directory(const std::string& path) const {
  guard([&] { real_.make_directory(path); });
}
void AbandonableFiles::sync_directory(const std::string& path) const {
  guard([&] { real_.sync_directory(path); });
}
bool AbandonableFiles::exists(const std::string& path) const {
  return guard([&] { return real_.exists(path); });
}
bool AbandonableFiles::is_directory(const std::string& path) const {
  return guard([&] { return real_.is_directory(path); });
}
std::vector<std::string> AbandonableFiles::list(const std::string& path) const {
  return guard([&] { return real_.list(path); });
}
std::uint64_t AbandonableFiles::available(const std::string& path) const {
  return guard([&] { return real_.available(path); });
}
FileStatus AbandonableFiles::status(const std::string& path) const {
  return guard([&] { return real_.status(path); });
}

}  // namespace dstrain
