#include "lib/train/run_directory.h"

#include <nlohmann/json.hpp>

#include "lib/checkpoint/run_lock.h"
#include "lib/config/writer.h"

namespace dstrain {

void RunDirectory::write_job(const Files& files, const Config& config) const {
  write_file_atomically(files, job(), to_yaml(config));
}

void RunDirectory::create(const Files& files) const {
  require_own_directory(files, checkpoints());
  make_durable_directory(files, checkpoints());
  files.open(log(), OpenMode::append)->close();  // here, so that it is made as all files are
  if (files.exists(exit())) files.remove(exit());
}

void RunDirectory::write_exit(const Files& files, ExitCode code, const std::string& reason,
                              std::int64_t step) const noexcept {
  try {
    const nlohmann::ordered_json json{{"code", static_cast<int>(code)}, {"reason", reason}, {"step", step}};
    write_file_atomically(files, exit(), json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  } catch (const std::exception&) {  // the disk may be the very reason of the end
  }
}

}  // namespace dstrain
