#pragma once
// Files that another thread can take from their user: for writers to storage that does not answer.

#include <atomic>
#include <mutex>

#include "lib/core/files.h"

namespace dstrain {

class AbandonableFiles final : public Files {
 public:
  // `real` is borrowed.
  explicit AbandonableFiles(const Files& real) : real_(real) {}

  // Every call from now on, and those under way once they return, throws FileError{write, why, ETIMEDOUT}.
  void abandon(const std::string& why);
  // They work again.
  void restore() { state_ = State::open; }
  // Every call from now on, and those under way once they return, never comes back: their thread sleeps for ever and
  // touches nothing more. For the end of a process that has no other way to be rid of it.
  void park() { state_ = State::parked; }

  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override;
  void rename(const std::string& from, const std::string& to) const override;
  void remove(const std::string& path) const override;
  void make_directory(const std::string& path) const override;
  void sync_directory(const std::string& path) const override;
  bool exists(const std::string& path) const override;
  bool is_directory(const std::string& path) const override;
  std::vector<std::string> list(const std::string& path) const override;
  std::uint64_t available(const std::string& path) const override;
  FileStatus status(const std::string& path) const override;

 private:
  class Guarded;
  enum class State { open, abandoned, parked };
  // Throws or sleeps when the files are not open.
  void check_open() const;
  template <class Call>
  auto guard(Call call) const;

  const Files& real_;
  std::atomic<State> state_{State::open};
  mutable std::mutex mutex_;  // of why_
  std::string why_;
};

}  // namespace dstrain
