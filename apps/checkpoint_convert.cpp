// dstrain checkpoint import | export: Hugging Face's directories to runs and back.

#include <cstdio>
#include <memory>

#include "apps/checkpoint.h"
#include "lib/config/values.h"
#include "lib/core/thread_pool.h"
#include "lib/observe/progress.h"
#include "lib/train/convert.h"

namespace dstrain {

namespace {

// "5GB", "300MiB", "123456": bytes.
std::uint64_t parse_size(const std::string& text) {
  struct Unit {
    const char* name;
    std::uint64_t bytes;
  };
  static constexpr Unit kUnits[] = {{"KiB", 1ull << 10},
                                    {"MiB", 1ull << 20},
                                    {"GiB", 1ull << 30},
                                    {"KB", 1000},
                                    {"MB", 1000000},
                                    {"GB", 1000000000},
                                    {"", 1}};
  for (const Unit& unit : kUnits) {
    if (!text.ends_with(unit.name)) continue;
    const auto number =
        parse_unsigned(std::string_view(text).substr(0, text.size() - std::string_view(unit.name).size()));
    if (number && *number > 0 && *number <= (1ull << 60) / unit.bytes) return *number * unit.bytes;
    break;
  }
  fail(ExitCode::usage, "--max-shard-size: '{}' is no size; say 5GB, 300MiB or a number of bytes", text);
}

void print(const char* made, const std::string& path, const Converted& c) {
  for (const std::string& note : c.notes) std::printf("%s\n", note.c_str());
  std::printf("%s %s: %zu tensors, %s in %d file(s)\n", made, path.c_str(), c.tensors,
              human_bytes(static_cast<double>(c.bytes)).c_str(), c.files);
}

}  // namespace

void add_conversions(CLI::App& command, std::function<ExitCode()>& chosen) {
  struct Options {
    std::string from, to, size = "5GB";
    int threads = 0;
    ExportOptions writing;
  };
  const auto o = std::make_shared<Options>();
  const auto threads = [o] { return o->threads > 0 ? o->threads : available_cores(); };

  CLI::App* imports = command.add_subcommand("import", "A run directory of a Hugging Face model's weights");
  imports->add_option("directory", o->from, "Holds config.json and safetensors, single or with an index")->required();
  imports->add_option("run", o->to, "Run directory to make")->required();
  imports->add_option("--threads", o->threads, "Tensors at a time; 0: this process's cores")
      ->check(CLI::Range(0, 1024));
  imports->callback([o, threads, &chosen] {
    chosen = [o, threads] {
      print("imported to", o->to, import_model(system_files(), system_clock(), o->from, o->to, threads()));
      return ExitCode::ok;
    };
  });

  CLI::App* exports = command.add_subcommand("export", "A Hugging Face directory of a checkpoint's weights");
  exports->add_option("run", o->from, "Run directory (its newest) or checkpoint")->required();
  exports->add_option("directory", o->to, "Directory to make")->required();
  exports->add_option("--dtype", o->writing.dtype, "Of the weights; left out: the imported files', else the job's")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  exports->add_option("--max-shard-size", o->size, "Largest file, as 5GB, 300MiB or bytes")->capture_default_str();
  exports->add_option("--threads", o->threads, "Files at a time; 0: this process's cores")->check(CLI::Range(0, 1024));
  exports->callback([o, threads, &chosen] {
    chosen = [o, threads] {
      ExportOptions options = o->writing;
      options.max_file = parse_size(o->size);
      options.threads = threads();
      print("exported to", o->to,
            export_model(system_files(), system_clock(), o->from, o->to, options,
                         [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }));
      return ExitCode::ok;
    };
  });
}

}  // namespace dstrain
