// dstrain checkpoint list | verify | diff; import and export are in checkpoint_convert.cpp.

#include <cstdio>
#include <memory>

#include "apps/checkpoint.h"
#include "apps/commands.h"
#include "lib/checkpoint/compare.h"
#include "lib/checkpoint/names.h"
#include "lib/checkpoint/reader.h"
#include "lib/core/files.h"
#include "lib/observe/progress.h"

namespace dstrain {

namespace {

// Paths of the checkpoints that an argument means, newest first: one checkpoint, or all of a run.
std::vector<std::string> checkpoints_of(const Files& files, const std::string& path) {
  require(files.is_directory(path), ExitCode::usage, "{}: there is no such directory", path);
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.ends_with('/')) trimmed.pop_back();
  if (files.exists(join_path(trimmed, kManifestName)) || step_of(trimmed.substr(trimmed.rfind('/') + 1)))
    return {trimmed};
  std::string directory = checkpoints_directory(trimmed);
  if (!files.is_directory(directory)) directory = trimmed;
  std::vector<std::string> found;
  for (const Index step : list_steps(files, directory)) found.push_back(join_path(directory, step_name(step)));
  require(!found.empty(), ExitCode::checkpoint, "{}: there is no checkpoint", path);
  return found;
}

ExitCode list(const std::string& path) {
  constexpr std::uint64_t kLargestManifest = 1ull << 30;
  const Files& files = system_files();
  std::printf("%-12s %-12s %-8s %-14s %-10s %s\n", "step", "next sample", "shards", "tensors", "bytes", "mesh");
  for (const std::string& checkpoint : checkpoints_of(files, path)) {
    const std::string name = join_path(checkpoint, kManifestName);
    try {
      const Manifest m = parse_manifest(read_file(files, name, kLargestManifest), name);
      double bytes = 0;
      for (const ShardRecord& s : m.shards) bytes += static_cast<double>(s.size);
      std::printf("%-12lld %-12lld %-8zu %-14zu %-10s %s\n", static_cast<long long>(m.state.step),
                  static_cast<long long>(m.state.next_sample), m.shards.size(), m.tensors.size(),
                  human_bytes(bytes).c_str(), m.state.mesh.to_string().c_str());
    } catch (const Error& e) {
      std::printf("not usable: %s\n", e.what());
    }
  }
  return ExitCode::ok;
}

ExitCode verify(const std::string& path) {
  ExitCode code = ExitCode::ok;
  for (const std::string& checkpoint : checkpoints_of(system_files(), path)) {
    try {
      Checkpoint::open(system_files(), checkpoint);
      std::printf("%s: good\n", checkpoint.c_str());
    } catch (const Error& e) {
      std::printf("%s: NOT GOOD: %s\n", checkpoint.c_str(), e.what());
      code = ExitCode::no;
    }
  }
  return code;
}

ExitCode diff(const std::string& first, const std::string& second) {
  const Files& files = system_files();
  Checkpoint a = Checkpoint::open(files, checkpoints_of(files, first).front());
  Checkpoint b = Checkpoint::open(files, checkpoints_of(files, second).front());
  std::printf("first   %s\nsecond  %s\n", a.path().c_str(), b.path().c_str());
  const Comparison c = compare(a, b);
  for (const std::string& line : c.state) std::printf("%s\n", line.c_str());
  if (!c.tensors.empty())
    std::printf("%-12s %-52s %14s %14s %12s\n", "role", "tensor", "elements", "different", "largest");
  for (const TensorDifference& d : c.tensors) {
    std::printf("%-12s %-52s ", d.role.c_str(), d.name.c_str());
    if (!d.problem.empty())
      std::printf("%s\n", d.problem.c_str());
    else
      std::printf("%14lld %14lld %12.3g\n", static_cast<long long>(d.elements), static_cast<long long>(d.different),
                  d.largest);
  }
  const bool equal = c.state.empty() && c.tensors.empty();
  std::printf("%lld tensors compared: %s\n", static_cast<long long>(c.compared),
              equal ? "equal, bit for bit" : "different");
  return equal ? ExitCode::ok : ExitCode::no;
}

}  // namespace

RunCommand add_checkpoint(CLI::App& command) {
  struct Options {
    std::string first, second;
    ExitCode (*run)(const Options&) = nullptr;
    std::function<ExitCode()> conversion;
  };
  const auto o = std::make_shared<Options>();
  command.require_subcommand(1);
  CLI::App* lists = command.add_subcommand("list", "Steps, sizes and meshes of a run's checkpoints, newest first");
  lists->add_option("run", o->first, "Run directory or checkpoint")->required();
  lists->callback([o] { o->run = [](const Options& x) { return list(x.first); }; });
  CLI::App* verifies =
      command.add_subcommand("verify", "Check every byte against the manifests; exit code 1 if one is bad");
  verifies->add_option("run", o->first, "Run directory or checkpoint")->required();
  verifies->callback([o] { o->run = [](const Options& x) { return verify(x.first); }; });
  CLI::App* differs =
      command.add_subcommand("diff", "Compare state and tensors bit for bit; exit code 1 if they differ");
  differs->add_option("first", o->first, "Run directory (its newest) or checkpoint")->required();
  differs->add_option("second", o->second, "Run directory (its newest) or checkpoint")->required();
  differs->callback([o] { o->run = [](const Options& x) { return diff(x.first, x.second); }; });
  add_conversions(command, o->conversion);
  return [o] { return o->conversion ? o->conversion() : o->run(*o); };
}

}  // namespace dstrain
