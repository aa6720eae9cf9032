#pragma once
// Files that write down every call that changes something, and the file systems that a loss of power may leave of them.

#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "lib/core/files.h"
#include "tests/support/memory_files.h"

namespace dstrain::test {

// What was done, in order. Directories and files are numbered, since names move.
class DiskLog {
 public:
  struct Effect {
    enum class Kind { write, truncate, link, unlink, rename, sync, acknowledge } kind;
    int of = 0;        // the file, or the directory whose entries change or are synced
    int target = 0;    // link, rename: the entry's file or directory
    std::string name;  // link, unlink, rename: the entry
    std::string from;  // rename: its name before
    std::uint64_t offset = 0;
    std::string bytes;
    std::int64_t step = 0;  // acknowledge
  };

  // `root` is there, empty and durable.
  explicit DiskLog(std::string root) : root_(std::move(root)) { live_[0] = {}; }

  std::size_t size() const { return effects_.size(); }
  void acknowledge(std::int64_t step) {
    const std::scoped_lock lock(mutex_);
    effects_.push_back({.kind = Effect::Kind::acknowledge, .step = step});
  }
  // The last step acknowledged among the first `count` effects.
  std::int64_t acknowledged(std::size_t count) const {
    std::int64_t step = 0;
    for (std::size_t i = 0; i < count; ++i)
      if (effects_[i].kind == Effect::Kind::acknowledge) step = effects_[i].step;
    return step;
  }

  // A file system after a loss of power behind the first `count` effects: all that was synced, and of the rest what
  // `random` says: nothing, everything, or any subset, of the last writes of a file also a part.
  std::unique_ptr<MemoryFiles> crash(std::size_t count, std::mt19937& random) const {
    using Kind = Effect::Kind;
    std::vector<bool> kept(count, false);
    const unsigned mode = random() % 4;
    for (std::size_t i = 0; i < count; ++i) kept[i] = mode == 1 || (mode > 1 && random() % (mode == 2 ? 2 : 8) > 0);
    std::vector<bool> durable(count, false);  // a sync of the same file or directory comes after it
    std::set<int> synced;
    for (std::size_t i = count; i-- > 0;) {
      durable[i] = synced.contains(effects_[i].of);
      if (durable[i]) kept[i] = true;
      if (effects_[i].kind == Kind::sync) synced.insert(effects_[i].of);
    }

    std::map<int, std::string> data;
    std::map<int, std::map<std::string, int>> entries;
    for (std::size_t i = 0; i < count; ++i) {
      const Effect& e = effects_[i];
      if (!kept[i]) continue;
      switch (e.kind) {
        case Kind::write: {
          std::string bytes = e.bytes;
          if (!durable[i] && mode > 1 && random() % 2) bytes.resize(random() % (bytes.size() + 1));
          std::string& to = data[e.of];
          if (to.size() < e.offset + bytes.size()) to.resize(e.offset + bytes.size());
          to.replace(e.offset, bytes.size(), bytes);
          break;
        }
        case Kind::truncate:
          data[e.of].resize(e.offset);
          break;
        case Kind::link:
          entries[e.of][e.name] = e.target;
          break;
        case Kind::unlink:
          entries[e.of].erase(e.name);
          break;
        case Kind::rename:
          entries[e.of].erase(e.from);
          entries[e.of][e.name] = e.target;
          break;
        case Kind::sync:
        case Kind::acknowledge:
          break;
      }
    }
    auto files = std::make_unique<MemoryFiles>();
    put(*files, root_, 0, data, entries);
    return files;
  }

 private:
  friend class RecordedFiles;
  struct Node {
    std::map<std::string, int> entries;
  };
  void put(MemoryFiles& files, const std::string& path, int node, const std::map<int, std::string>& data,
           const std::map<int, std::map<std::string, int>>& entries) const {
    if (!live_.contains(node)) {  // a file
      const auto found = data.find(node);
      files.put(path, found == data.end() ? "" : found->second);
      return;
    }
    const auto found = entries.find(node);
    if (found == entries.end()) return;
    for (const auto& [name, below] : found->second) put(files, path + "/" + name, below, data, entries);
  }
  // The node of a path below the root; -1: none, or not below it.
  int node_of(const std::string& path) const {
    if (path == root_) return 0;
    if (!path.starts_with(root_ + "/")) return -1;
    const int parent = node_of(parent_path(path));
    const auto directory = live_.find(parent);
    if (directory == live_.end()) return -1;
    const auto found = directory->second.entries.find(path.substr(path.rfind('/') + 1));
    return found == directory->second.entries.end() ? -1 : found->second;
  }
  void link(const std::string& path, int target) {
    const int parent = node_of(parent_path(path));
    const std::string name = path.substr(path.rfind('/') + 1);
    live_.at(parent).entries[name] = target;
    effects_.push_back({.kind = Effect::Kind::link, .of = parent, .target = target, .name = name});
  }

  std::string root_;
  std::mutex mutex_;
  int nodes_ = 1;
  std::map<int, Node> live_;  // directories, as they are now; removed ones too
  std::vector<Effect> effects_;
};

class RecordedFiles final : public Files {
 public:
  RecordedFiles(const Files& real, DiskLog& log) : real_(real), log_(log) {}

  std::unique_ptr<File> open(const std::string& path, OpenMode mode) const override {
    auto file = real_.open(path, mode);
    const std::scoped_lock lock(log_.mutex_);
    int node = log_.node_of(path);
    if (mode != OpenMode::read && node < 0) log_.link(path, node = log_.nodes_++);
    return std::make_unique<Recorded>(log_, node, std::move(file));
  }
  void rename(const std::string& from, const std::string& to) const override {
    real_.rename(from, to);
    const std::scoped_lock lock(log_.mutex_);
    check(parent_path(from) == parent_path(to), "a rename into another directory");
    const int node = log_.node_of(from), parent = log_.node_of(parent_path(from));
    const std::string a = from.substr(from.rfind('/') + 1), b = to.substr(to.rfind('/') + 1);
    log_.live_.at(parent).entries.erase(a);
    log_.live_.at(parent).entries[b] = node;
    log_.effects_.push_back(
        {.kind = DiskLog::Effect::Kind::rename, .of = parent, .target = node, .name = b, .from = a});
  }
  void remove(const std::string& path) const override {
    real_.remove(path);
    const std::scoped_lock lock(log_.mutex_);
    const int parent = log_.node_of(parent_path(path));
    const std::string name = path.substr(path.rfind('/') + 1);
    log_.live_.at(parent).entries.erase(name);
    log_.effects_.push_back({.kind = DiskLog::Effect::Kind::unlink, .of = parent, .name = name});
  }
  void make_directory(const std::string& path) const override {
    if (real_.is_directory(path)) return;
    make_directory(parent_path(path));
    real_.make_directory(path);
    const std::scoped_lock lock(log_.mutex_);
    log_.live_[log_.nodes_] = {};
    log_.link(path, log_.nodes_++);
  }
  void sync_directory(const std::string& path) const override {
    real_.sync_directory(path);
    const std::scoped_lock lock(log_.mutex_);
    log_.effects_.push_back({.kind = DiskLog::Effect::Kind::sync, .of = log_.node_of(path)});
  }
  bool exists(const std::string& path) const override { return real_.exists(path); }
  bool is_directory(const std::string& path) const override { return real_.is_directory(path); }
  std::vector<std::string> list(const std::string& path) const override { return real_.list(path); }
  std::uint64_t available(const std::string& path) const override { return real_.available(path); }
  FileStatus status(const std::string& path) const override { return real_.status(path); }

 private:
  class Recorded final : public File {
   public:
    Recorded(DiskLog& log, int node, std::unique_ptr<File> real) : log_(log), node_(node), real_(std::move(real)) {}
    void pread(std::span<std::byte> into, std::uint64_t offset) const override { real_->pread(into, offset); }
    void pwrite(std::span<const std::byte> from, std::uint64_t offset) override {
      real_->pwrite(from, offset);
      note({.kind = DiskLog::Effect::Kind::write,
            .of = node_,
            .offset = offset,
            .bytes = {reinterpret_cast<const char*>(from.data()), from.size()}});
    }
    std::uint64_t size() const override { return real_->size(); }
    void truncate(std::uint64_t size) override {
      real_->truncate(size);
      note({.kind = DiskLog::Effect::Kind::truncate, .of = node_, .offset = size});
    }
    void sync() override {
      real_->sync();
      note({.kind = DiskLog::Effect::Kind::sync, .of = node_});
    }
    void close() override { real_->close(); }

   private:
    void note(DiskLog::Effect effect) {
      const std::scoped_lock lock(log_.mutex_);
      log_.effects_.push_back(std::move(effect));
    }
    DiskLog& log_;
    int node_;
    std::unique_ptr<File> real_;
  };

  const Files& real_;
  DiskLog& log_;
};

}  // namespace dstrain::test
