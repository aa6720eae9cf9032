// Text of every kind and compression, cut by every rule. The first byte of an input says which file it is.

#include "tests/support/fuzz.h"

#include <zlib.h>
#include <zstd.h>

#include "lib/data/documents.h"
#include "tests/support/memory_files.h"

using namespace dstrain;
using namespace dstrain::test;

namespace {

constexpr const char* kNames[] = {"a.txt", "a.jsonl", "a.md.gz", "a.rst.zst", "a.jsonl.zst"};

std::string gz(const std::string& text) {
  std::string out(compressBound(text.size()) + 64, '\0');
  z_stream z{};
  deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = static_cast<uInt>(text.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  deflate(&z, Z_FINISH);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

std::string zst(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

void read_text(const std::string& input) {
  if (input.empty()) return;
  MemoryFiles files;
  files.put(std::string("d/") + kNames[static_cast<unsigned char>(input[0]) % std::size(kNames)], input.substr(1));
  for (const DocumentRule rule : {DocumentRule::file, DocumentRule::blank_line, DocumentRule::record}) {
    DocumentReader reader(files, find_text(files, {"d"}), rule);
    for (RawDocument d; reader.next(d);) text_of(std::move(d), reader.texts(), "text");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string text = "one\ntwo\n\nthree \xc3\xa9\r\n\n\n four", big(100000, 'x'),
                    lines =
                        "{\"text\": \"one\"}\n\n{\"a\": [1, -2.5e3, true, null, {\"text\": 3}], \"text\": "
                        "\"\\u00e9\\n\"}\n";
  const auto of = [](char kind, const std::string& bytes) { return kind + bytes; };
  return fuzz::run(argc, argv,
                   {of(0, text), of(1, lines), of(2, gz(text) + gz("")), of(2, gz(big)), of(3, zst(text) + zst("")),
                    of(3, zst(big)), of(4, zst(lines))},
                   {"\"text\"",
                    ":",
                    "{",
                    "}",
                    "[",
                    "]",
                    ",",
                    "\"",
                    "\\u",
                    "\\ud8",
                    "-",
                    "nul",
                    "\n",
                    "\n\n",
                    "\r\n",
                    "\xff",
                    "\xc3",
                    "[[[[[[[[",
                    "1e400",
                    gz("a"),
                    "\x1f\x8b",
                    zst("a"),
                    "\x28\xb5\x2f\xfd"},
                   read_text);
}
