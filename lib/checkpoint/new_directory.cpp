#include "lib/checkpoint/new_directory.h"

#include <utility>

#include "lib/checkpoint/names.h"

namespace dstrain {

NewDirectory::NewDirectory(const Files& files, std::string path, const std::string& host_name, const Clock& clock)
    : files_(files), path_(std::move(path)) {
  while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
  partial_ = path_ + kPartialSuffix;
  require_free();
  lock_.emplace(files_, partial_, host_name, clock);
  require_free();  // whoever had the lock may have been done meanwhile
  for (const std::string& name : files_.list(partial_))
    if (!name.starts_with("lock")) remove_tree(files_, join_path(partial_, name));
}

void NewDirectory::require_free() const {
  require_own_directory(files_, path_);
  require(!files_.exists(path_) || files_.list(path_).empty(), ExitCode::write,
          "{}: there is something already; name a new directory, or an empty one", path_);
}

void NewDirectory::publish() {
  files_.sync_directory(partial_);
  files_.rename(partial_, path_);
  published_ = true;
  for (const char* name : {"lock", "lock.lease"})
    if (files_.exists(join_path(path_, name))) files_.remove(join_path(path_, name));
  files_.sync_directory(parent_path(path_));
}

NewDirectory::~NewDirectory() {
  if (published_) return;
  try {
    remove_tree(files_, partial_);
  } catch (const Error&) {  // the next one removes it
  }
}

}  // namespace dstrain
