#pragma once
// Raw text: which files hold it, and their bytes as a stream.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/core/files.h"

namespace dstrain {

struct TextFile {
  std::string path;
  std::uint64_t bytes = 0;  // as stored
  bool records = false;     // .jsonl: one JSON object a line
};

// The text among `inputs`: files, directories (searched to 32 levels, sorted by name) and globs (* and ? in the last
// part): .txt, .md, .rst and .jsonl, each plain, .gz or .zst. In the order of the inputs. A file that is named must be
// one of these. Throws Error{data} when an input cannot be read, and when there is no text.
std::vector<TextFile> find_text(const Files& files, const std::vector<std::string>& inputs);

// The bytes of one file, decompressed by its name's ending; gzip members and zstd frames may follow one another.
// A byte order mark at the text's beginning is left out. Memory: a buffer, and a window of at most 128 MiB for zstd.
// Throws Error{data} with the path, and the offset in the file for damage.
class TextStream {
 public:
  TextStream(const Files& files, const std::string& path);
  ~TextStream();
  TextStream(const TextStream&) = delete;
  TextStream& operator=(const TextStream&) = delete;

  // Fills `into` or what is left; 0 at the end.
  std::size_t read(std::span<char> into);
  std::uint64_t consumed() const;  // stored bytes read so far
  const std::string& path() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dstrain
