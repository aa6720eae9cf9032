#include "lib/data/token_source.h"

#include <filesystem>
#include <random>

#include "lib/data/glob.h"
#include "tests/data/temporary.h"
#include "tests/support/catch.h"
#include "tests/support/faulty_files.h"

using namespace dstrain;
using dstrain::test::FaultyFiles;
using dstrain::test::full_disk;

namespace {

constexpr TokenFileInfo kInfo{0x0123456789abcdefull, 1000, 7};

std::vector<std::vector<std::int32_t>> documents(int count, Index vocab_size, std::uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<std::int32_t>> out(static_cast<std::size_t>(count));
  for (auto& d : out) {
    d.resize(random() % 300);
    for (auto& t : d) t = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocab_size));
  }
  return out;
}

std::vector<std::int32_t> stream_of(const std::vector<std::vector<std::int32_t>>& docs) {
  std::vector<std::int32_t> out;
  for (const auto& d : docs) {
    out.insert(out.end(), d.begin(), d.end());
    out.push_back(kInfo.end_of_document);
  }
  return out;
}

std::vector<std::string> write(const std::string& prefix, const std::vector<std::vector<std::int32_t>>& docs,
                               TokenFileInfo info = kInfo, Index cut = kTokensPerFile) {
  TokenWriter writer(system_files(), prefix, info, cut);
  for (const auto& d : docs) writer.add(d);
  return writer.finish();
}

template <class F>
std::string message(F&& body, ExitCode code = ExitCode::data) {
  try {
    body();
    return "";
  } catch (const Error& e) {
    CHECK(e.code() == code);
    return e.what();
  }
}

// A token file written by hand, one part of it wrong.
struct Handmade {
  std::vector<std::uint16_t> tokens = {1, 2, 7, 3, 7};
  std::vector<std::int64_t> offsets = {0, 3, 5};
  std::vector<std::uint64_t> checksums = {xxh3(std::as_bytes(std::span(tokens)))};
  std::int64_t version = 1, vocab_size = 1000, end = 7, token_count = 5, document_count = 2;
  std::string hash = "0123456789abcdef";
  bool with_hash = true;

  std::string write(const std::string& path) const {
    Hdf5File f = Hdf5File::create(system_files(), path, OpenMode::replace);
    const auto put = [&](const char* name, Hdf5Type type, const auto& v) {
      f.create_dataset(name, type, {static_cast<Index>(v.size())}).write(std::as_bytes(std::span(v)));
    };
    put("tokens", Hdf5Type::u16, tokens);
    put("document_offsets", Hdf5Type::i64, offsets);
    put("block_checksums", Hdf5Type::u64, checksums);
    f.write_attribute("/", "format_version", version);
    f.write_attribute("/", "vocab_size", vocab_size);
    f.write_attribute("/", "end_of_document_id", end);
    f.write_attribute("/", "token_count", token_count);
    f.write_attribute("/", "document_count", document_count);
    if (with_hash) f.write_attribute("/", "tokenizer_hash", hash);
    f.close()->close();
    return path;
  }
};

}  // namespace

TEST_CASE("token files read back, at every width and cut") {
  const Temporary t;
  const auto docs = documents(200, 1000);
  const auto expected = stream_of(docs);
  for (const Index vocab_size : {1000, 65536, 65537}) {
    for (const Index cut : {Index{1000}, kTokensPerFile}) {
      const std::string prefix = t / format("v{}c{}", vocab_size, cut);
      const auto paths = write(prefix, docs, {kInfo.tokenizer_hash, vocab_size, 7}, cut);
      CHECK(paths[0] == prefix + "-00000.h5");
      CHECK((cut == 1000) == (paths.size() > 1));
      TokenSource source(system_files(), prefix + "-*.h5");
      CHECK(source.files() == paths.size());
      CHECK(source.documents() == 200);
      REQUIRE(source.tokens() == static_cast<Index>(expected.size()));
      CHECK(std::string(source.file(0).type()) == (vocab_size <= 65536 ? "u16" : "u32"));
      CHECK(source.info().tokenizer_hash == kInfo.tokenizer_hash);
      std::vector<std::int32_t> all(expected.size());
      source.read(0, all);
      CHECK(all == expected);
      std::mt19937_64 random(2);
      for (int i = 0; i < 50; ++i) {
        const std::size_t begin = random() % expected.size(), n = random() % (expected.size() - begin);
        std::vector<std::int32_t> part(n);
        source.read(static_cast<Index>(begin), part);
        CHECK(std::equal(part.begin(), part.end(), expected.begin() + static_cast<std::ptrdiff_t>(begin)));
      }
      // Every token knows its document, and every range the documents that begin in it.
      std::vector<Index> starts, found;
      Index at = 0;
      for (const auto& document : docs) {
        starts.push_back(at);
        at += static_cast<Index>(document.size()) + 1;
      }
      for (Index token = 0; token < source.tokens(); token += 37) {
        const auto next = std::upper_bound(starts.begin(), starts.end(), token);
        const auto place = source.locate(token);
        CHECK(source.file(place.file).document(place.document).first - place.token == *(next - 1) - token);
        found.clear();
        const Index end = std::min(source.tokens(), token + 700);
        source.document_starts(token, end, found);
        CHECK(found == std::vector<Index>(next, std::lower_bound(next, starts.end(), end)));
      }
      Index first_document = 0;
      for (std::size_t f = 0; f < source.files(); ++f) {
        source.file(f).verify();
        // A file is cut at the first document end past the limit, and ends with a whole document.
        CHECK(source.file(f).tokens() < cut + 301);
        const auto [begin, end] = source.file(f).document(0);
        CHECK(begin == 0);
        CHECK(end == static_cast<Index>(docs[static_cast<std::size_t>(first_document)].size()) + 1);
        first_document += source.file(f).documents();
      }
    }
  }
}

TEST_CASE("checksums cover 2^20 tokens each") {
  const Temporary t;
  std::vector<std::int32_t> document(static_cast<std::size_t>(kTokenBlock) * 2 + 17);
  for (std::size_t i = 0; i < document.size(); ++i) document[i] = static_cast<std::int32_t>(i % 999);
  const auto paths = write(t / "big", {document});
  const Hdf5File file = Hdf5File::open(system_files(), paths[0]);
  std::vector<std::uint64_t> sums(3);
  REQUIRE(file.open_dataset("block_checksums").shape() == Shape{3});
  file.open_dataset("block_checksums").read(std::as_writable_bytes(std::span(sums)));
  std::vector<std::uint16_t> stored(document.begin(), document.end());
  stored.push_back(7);
  for (std::size_t b = 0; b < 3; ++b) {
    const std::size_t begin = b << 20;
    const std::size_t n = std::min<std::size_t>(1 << 20, stored.size() - begin);
    CHECK(sums[b] == xxh3(std::as_bytes(std::span(stored).subspan(begin, n))));
  }
  TokenFile(system_files(), paths[0]).verify();
}

TEST_CASE("existing token files are not written over, and a full disk leaves none behind") {
  const Temporary t;
  const auto docs = documents(20, 1000);
  write(t / "a", docs);
  CHECK(message([&] { write(t / "a", docs); }, ExitCode::write) ==
        t / "a-00000.h5" + " exists; remove it, or choose another prefix");
  CHECK_THROWS_AS(
      [&] {
        const FaultyFiles faulty(system_files(), full_disk(3));
        TokenWriter writer(faulty, t / "b", kInfo);
        for (const auto& d : docs) writer.add(d);
        writer.finish();
      }(),
      Error);
  for (const auto& name : system_files().list(t / ".")) CHECK(name[0] != 'b');
  {
    TokenWriter given_up(system_files(), t / "c", kInfo);
    given_up.add(docs[0]);
  }
  CHECK_FALSE(system_files().exists(t / "c-00000.h5"));
  CHECK_FALSE(system_files().exists(t / "c-00000.h5.partial"));
  CHECK(TokenWriter(system_files(), t / "d", kInfo).finish().empty());
}

TEST_CASE("each fault of a token file has its own words") {
  const Temporary t;
  const std::string path = t / "h.h5";
  const auto report = [&](const Handmade& h) {
    return message([&] { TokenFile(system_files(), h.write(path)).verify(); });
  };
  CHECK(report({}) == "");
  const auto with = [](auto&& change) {
    Handmade h;
    change(h);
    return h;
  };
  const std::pair<Handmade, const char*> cases[] = {
      {with([](Handmade& h) { h.version = 2; }), "format_version 2; this program reads 1"},
      {with([](Handmade& h) { h.vocab_size = 0; }), "vocab_size 0"},
      {with([](Handmade& h) { h.end = 1000; }), "end_of_document_id 1000 of a vocabulary of 1000"},
      {with([](Handmade& h) { h.token_count = 6; }), "/tokens is u16 (5), expected (6)"},
      {with([](Handmade& h) { h.token_count = -1; }), "token_count -1"},
      {with([](Handmade& h) { h.document_count = 3; }), "/document_offsets is i64 (3), expected (4)"},
      {with([](Handmade& h) { h.document_count = 6; }), "document_count 6"},
      {with([](Handmade& h) { h.checksums.push_back(0); }), "/block_checksums is u64 (2), expected (1)"},
      {with([](Handmade& h) { h.hash = "xyz"; }), "tokenizer_hash is not 16 hexadecimal digits"},
      {with([](Handmade& h) {
         h.offsets = {1, 3, 5};
       }),
       "document_offsets[0] is 1, expected 0"},
      {with([](Handmade& h) {
         h.offsets = {0, 0, 5};
       }),
       "document_offsets[1] is 0 after 0, of 5 tokens"},
      {with([](Handmade& h) {
         h.offsets = {0, 6, 5};
       }),
       "document_offsets[1] is 6 after 0, of 5 tokens"},
      {with([](Handmade& h) {
         h.offsets = {0, 2, 5};
       }),
       "document 0 ends with token 2, expected 7"},
      {with([](Handmade& h) {
         h.offsets = {0, 3, 3};
       }),
       "document_offsets[2] is 3 after 3, of 5 tokens"},
      {with([](Handmade& h) {
         h.vocab_size = 8;
         h.tokens[3] = 9;
         h.checksums[0] = xxh3(std::as_bytes(std::span(h.tokens)));
       }),
       "token 9 at 3 is outside the vocabulary of 8"},
  };
  for (const auto& [h, expected] : cases) CHECK(report(h) == path + ": " + expected);
  Handmade no_hash;
  no_hash.with_hash = false;
  CHECK(report(no_hash).find(path + ": cannot read attribute 'tokenizer_hash'") == 0);
  Handmade bad_sum;
  bad_sum.checksums[0] ^= 1;
  CHECK(report(bad_sum).find(path + ": tokens 0 to 5: checksum ") == 0);
  // The short one ends before the tokens do.
  Handmade short_offsets;
  short_offsets.offsets = {0, 3};
  short_offsets.document_count = 1;
  CHECK(report(short_offsets) == path + ": document_offsets end at 3 of 5 tokens");
}

TEST_CASE("a token's document is right or an error, whatever the offsets are") {
  const Temporary t;
  const std::int64_t values[] = {INT64_MIN, 0, 1, 3, 5, 6, INT64_MAX};
  int errors = 0, answers = 0;
  for (const std::int64_t a : values)
    for (const std::int64_t b : values)
      for (const std::int64_t c : values)
        for (const std::int64_t d : values) {
          Handmade h;
          h.offsets = {a, b, c, d};
          h.document_count = 3;
          INFO(a << " " << b << " " << c << " " << d);
          TokenFile file(system_files(), h.write(t / "h.h5"));
          for (Index token = 0; token < 5; ++token) {
            const std::string said = message([&] {
              const auto [begin, end] = file.document(file.document_of(token));
              CHECK((0 <= begin && begin <= token && token < end && end <= 5));
              std::vector<Index> starts;
              file.document_starts(token, 5, starts);
              Index previous = token;
              for (const Index start : starts) {
                CHECK((start > previous && start < 5));
                previous = start;
              }
              ++answers;
            });
            if (said.empty()) continue;
            ++errors;
            CHECK_THAT(said, Catch::Matchers::StartsWith(t / "h.h5: document_offsets["));
          }
        }
  CHECK(answers > 5);
  CHECK(errors > 3000);
}

TEST_CASE("a range of documents is refused with the offset that is wrong, be it behind the range") {
  const Temporary t;
  const auto report = [&](std::vector<std::int64_t> offsets, Index begin, Index end) {
    Handmade h;
    h.offsets = std::move(offsets);
    h.document_count = static_cast<std::int64_t>(h.offsets.size()) - 1;
    TokenFile file(system_files(), h.write(t / "h.h5"));
    std::vector<Index> starts;
    return message([&] { file.document_starts(begin, end, starts); });
  };
  const std::string at = t / "h.h5: document_offsets";
  CHECK(report({0, 3, 5}, 0, 5) == "");
  CHECK(report({0, 3, 99, 5}, 0, 3) == at + "[2] is 99 after 3, of 5 tokens");
  CHECK(report({0, 1, 1ll << 40, 5}, 0, 5) == at + "[2] is 1099511627776 after 1, of 5 tokens");
  CHECK(report({0, 3, 4, 2, 5}, 0, 4) == at + "[3] is 2 after 4, of 5 tokens");
  CHECK(report({0, 3, 4}, 0, 5) == at + "[2], the last, is 4 of 5 tokens");
}

TEST_CASE("truncated and flipped token files are errors, and crash nothing") {
  const Temporary t;
  const auto docs = documents(30, 1000);
  const auto paths = write(t / "a", docs);
  const std::string good = read_file(system_files(), paths[0]);
  const auto expected = stream_of(docs);
  std::mt19937_64 random(4);
  int errors = 0;
  for (int i = 0; i < 160; ++i) {
    std::string bad = good;
    if (i % 4 == 0) {
      bad.resize(random() % good.size());
    } else {
      const std::size_t at = i % 4 == 1   ? random() % 4096
                             : i % 4 == 2 ? random() % good.size()
                                          : good.size() - 1 - random() % 8192;
      bad[at] = static_cast<char>(bad[at] ^ static_cast<char>(1 + random() % 255));
    }
    system_files().open(t / "bad.h5", OpenMode::replace)->pwrite(std::as_bytes(std::span(bad)), 0);
    try {
      TokenFile file(system_files(), t / "bad.h5");
      file.verify();
      std::vector<std::int32_t> all(expected.size());
      REQUIRE(file.tokens() == static_cast<Index>(expected.size()));
      file.read(0, all);
      REQUIRE(all == expected);
    } catch (const Error&) {
      ++errors;
    }
  }
  CHECK(errors > 60);
}

TEST_CASE("globs match in the last part of a path, sorted") {
  const Temporary t;
  for (const char* name : {"b-1.h5", "a-1.h5", "a-22.h5", "a.txt"}) system_files().open(t / name, OpenMode::create);
  CHECK(expand_glob(system_files(), t / "a-*.h5") == std::vector<std::string>{t / "a-1.h5", t / "a-22.h5"});
  CHECK(expand_glob(system_files(), t / "?-?.h5") == std::vector<std::string>{t / "a-1.h5", t / "b-1.h5"});
  CHECK(expand_glob(system_files(), t / "*").size() == 4);
  CHECK(expand_glob(system_files(), t / "c*").empty());
  CHECK(expand_glob(system_files(), t / "exact") == std::vector<std::string>{t / "exact"});
  CHECK(message([&] { TokenSource(system_files(), t / "c*"); }) == t / "c*" + ": no file matches");
  CHECK(message([&] { expand_glob(system_files(), t / "*/a"); }, ExitCode::usage) != "");
}
