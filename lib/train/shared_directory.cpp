#include "lib/train/shared_directory.h"

#include <unistd.h>

#include <random>

#include "lib/core/hash.h"

namespace dstrain {

namespace {

// What the file holds, or nothing.
std::string seen(const Files& files, const std::string& path) {
  try {
    return files.exists(path) ? read_file(files, path, 4096) : std::string();
  } catch (const FileError&) {
    return {};
  }
}

}  // namespace

void prove_shared(const Files& files, const Clock& clock, const std::string& directory, const std::string& host_name,
                  Agreement& everyone, double patience) {
  if (everyone.size() == 1) return;
  std::string nonce, path, owner;
  // A name of its own, so that no client of a network file system has an old answer for it.
  everyone.together([&] {
    if (everyone.rank() != 0) return;
    std::random_device random;
    nonce = hex((static_cast<std::uint64_t>(random()) << 32) | random());
    write_file_atomically(files, join_path(directory, "shared-" + nonce), nonce);
  });
  nonce = everyone.broadcast(nonce);
  owner = everyone.broadcast(host_name);
  path = join_path(directory, "shared-" + nonce);
  const auto remove = [&] {
    if (everyone.rank() == 0) files.remove(path);
  };
  try {
    everyone.together([&] {
      const double begin = clock.now();
      while (seen(files, path) != nonce) {
        require(clock.now() - begin < patience, ExitCode::usage,
                "host {} does not see the run directory {} that rank 0 on host {} writes to: all hosts must share it",
                host_name, directory, owner);
        clock.sleep(0.1);
      }
    });
  } catch (const Error&) {
    try {
      remove();
    } catch (const Error&) {  // the first error says more
    }
    throw;
  }
  everyone.together(remove);
}

}  // namespace dstrain
