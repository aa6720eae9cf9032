#include "lib/data/text.h"

#include <zlib.h>

#include <algorithm>
#include <array>

namespace dstrain {

namespace {

constexpr int kDepth = 32;
constexpr std::array kEndings = {".txt", ".md", ".rst"};

bool is_document(std::string name) {
  if (name.ends_with(".gz")) name.resize(name.size() - 3);
  return std::any_of(kEndings.begin(), kEndings.end(), [&](const char* e) { return name.ends_with(e); });
}

void search(const Files& files, const std::string& directory, int depth, std::vector<std::string>& out) {
  require(depth < kDepth, ExitCode::data, "{}: directories nested deeper than {} levels", directory, kDepth);
  for (const auto& name : files.list(directory)) {
    const std::string path = directory + "/" + name;
    if (files.is_directory(path))
      search(files, path, depth + 1, out);
    else if (is_document(name))
      out.push_back(path);
  }
}

std::string inflate(const std::string& bytes, const std::string& path) {
  std::string out;
  std::array<char, 1 << 16> buffer;
  z_stream z{};
  require(inflateInit2(&z, 15 + 16) == Z_OK, ExitCode::data, "{}: zlib does not start", path);
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  z.avail_in = static_cast<uInt>(bytes.size());
  std::string error;
  while (error.empty()) {
    z.next_out = reinterpret_cast<Bytef*>(buffer.data());
    z.avail_out = static_cast<uInt>(buffer.size());
    const int rc = ::inflate(&z, Z_NO_FLUSH);
    out.append(buffer.data(), buffer.size() - z.avail_out);
    if (out.size() > kMaxDocument) error = format("more than {} bytes", kMaxDocument);
    if (rc == Z_STREAM_END) {
      if (z.avail_in == 0) break;
      if (inflateReset(&z) != Z_OK) error = "cannot read its next member";  // gzip files may be concatenated
    } else if (rc != Z_OK) {
      error = rc == Z_BUF_ERROR ? "it ends too early" : format("damaged: {}", z.msg ? z.msg : "bad data");
    }
  }
  inflateEnd(&z);
  if (!error.empty()) fail(ExitCode::data, "{}: {}", path, error);
  return out;
}

}  // namespace

std::vector<std::string> find_documents(const Files& files, const std::vector<std::string>& inputs) {
  std::vector<std::string> out;
  for (std::string input : inputs) {
    while (input.size() > 1 && input.back() == '/') input.pop_back();
    if (files.is_directory(input)) {
      search(files, input, 0, out);
      continue;
    }
    require(files.exists(input), ExitCode::data, "{}: no such file or directory", input);
    require(is_document(input), ExitCode::data, "{}: not text that is read; .txt, .md, .rst and .gz of them are",
            input);
    out.push_back(input);
  }
  require(!out.empty(), ExitCode::data, "no .txt, .md or .rst file, or .gz of one, in the inputs");
  return out;
}

std::string read_document(const Files& files, const std::string& path) {
  std::string bytes = read_file(files, path, kMaxDocument);
  return path.ends_with(".gz") ? inflate(bytes, path) : bytes;
}

}  // namespace dstrain
