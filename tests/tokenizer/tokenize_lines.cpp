// Encodes for tests/tokenizer/equality_test.py: tokenize_lines TOKENIZER LINES IDS TEXTS [special] [template]
//
// LINES: (u32 size, bytes) for each text. IDS: for each text, u32 count and its ids as i32. TEXTS: (u32 size, bytes) of
// what the ids decode to.
#include <cstdio>
#include <cstring>

#include "lib/tokenizer/tokenizer.h"

using namespace dstrain;

int main(int argc, char** argv) try {
  if (argc < 5) return 2;
  EncodeOptions options;
  for (int i = 5; i < argc; ++i) {
    options.special_tokens = options.special_tokens || std::strcmp(argv[i], "special") == 0;
    options.template_tokens = options.template_tokens || std::strcmp(argv[i], "template") == 0;
  }
  const Tokenizer tokenizer = Tokenizer::load(system_files(), argv[1]);
  write_file_atomically(system_files(), std::string(argv[3]) + ".json", tokenizer.to_json());
  const std::string lines = read_file(system_files(), argv[2], 1ull << 32);
  Encoder encoder(tokenizer);
  std::string out, texts;
  const auto put = [](std::string& to, std::size_t n) {
    const auto size = static_cast<std::uint32_t>(n);
    to.append(reinterpret_cast<const char*>(&size), 4);
  };
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; at < lines.size();) {
    std::uint32_t size = 0;
    std::memcpy(&size, lines.data() + at, 4);
    ids.clear();
    encoder.encode(std::string_view(lines).substr(at + 4, size), ids, options);
    at += 4 + size;
    put(out, ids.size());
    out.append(reinterpret_cast<const char*>(ids.data()), ids.size() * 4);
    const std::string text = tokenizer.decode(ids);
    put(texts, text.size());
    texts += text;
  }
  write_file_atomically(system_files(), argv[3], out);
  write_file_atomically(system_files(), argv[4], texts);
  return 0;
} catch (const Error& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return static_cast<int>(e.code());
}
