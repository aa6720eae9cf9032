#include "lib/core/hdf5.h"

#include <numeric>
#include <random>

#include "lib/core/hash.h"
#include "tests/data/temporary.h"
#include "tests/support/catch.h"
#include "tests/support/faulty_files.h"

using namespace dstrain;
using dstrain::test::FaultyFiles;
using dstrain::test::full_disk;

namespace {

void write_sample(const Files& files, const std::string& path) {
  Hdf5File file = Hdf5File::create(files, path, OpenMode::replace);
  std::vector<float> matrix(300 * 200);
  std::iota(matrix.begin(), matrix.end(), 0.0f);
  auto d = file.create_dataset("weight/model.layers.0.w", Hdf5Type::f32, {300, 200}, false, 16384);
  d.write(std::as_bytes(std::span(matrix)));
  auto rows = file.create_dataset("tokens", Hdf5Type::u16, {0}, true, 4096);
  for (std::uint16_t i = 0; i < 5; ++i) {
    const std::vector<std::uint16_t> part(1000, i);
    rows.append(1000, std::as_bytes(std::span(part)));
  }
  const bfloat16 halves[3] = {bfloat16(1.0f), bfloat16(-2.5f), bfloat16(3e38f)};
  file.create_dataset("exp_avg/b", Hdf5Type::bf16, {3}).write(std::as_bytes(std::span(halves)));
  file.create_dataset("empty", Hdf5Type::i64, {0, 3});
  const double scalar = 0.1;
  file.create_dataset("scalar", Hdf5Type::f64, {}).write(std::as_bytes(std::span(&scalar, 1)));
  file.write_attribute("/", "version", std::int64_t{-7});
  file.write_attribute("weight/model.layers.0.w", "text", std::string("h\xc3\xa9llo"));
  file.write_attribute("/", "nothing", std::string());
  const auto out = file.close();
  out->sync();
  out->close();
}

// Reads all there is; throws or returns a digest.
std::uint64_t read_all(const Files& files, const std::string& path) {
  const Hdf5File file = Hdf5File::open(files, path);
  Xxh3Hasher hasher;
  for (const auto& name : file.datasets()) {
    const Hdf5Dataset d = file.open_dataset(name);
    std::vector<std::byte> bytes(static_cast<std::size_t>(d.shape().numel()) * size_of(d.type()));
    d.read(bytes);
    hasher.update(std::as_bytes(std::span(name)));
    hasher.update(bytes);
  }
  const std::int64_t version = file.read_integer("/", "version");
  hasher.update(std::as_bytes(std::span(&version, 1)));
  const std::string text = file.read_text("weight/model.layers.0.w", "text");
  hasher.update(std::as_bytes(std::span(text)));
  return hasher.digest();
}

void put(const std::string& path, const std::string& bytes) {
  system_files().open(path, OpenMode::replace)->pwrite(std::as_bytes(std::span(bytes)), 0);
}

}  // namespace

TEST_CASE("HDF5: what is written reads back, and the same calls give the same bytes") {
  const Temporary t;
  write_sample(system_files(), t / "a.h5");
  write_sample(system_files(), t / "b.h5");
  CHECK(read_file(system_files(), t / "a.h5") == read_file(system_files(), t / "b.h5"));

  const Hdf5File file = Hdf5File::open(system_files(), t / "a.h5");
  CHECK(file.datasets() ==
        std::vector<std::string>{"empty", "exp_avg/b", "scalar", "tokens", "weight/model.layers.0.w"});
  CHECK(file.datasets("weight") == std::vector<std::string>{"weight/model.layers.0.w"});
  CHECK(file.has("weight"));
  CHECK(file.has("weight/model.layers.0.w"));
  CHECK_FALSE(file.has("weight/x"));
  CHECK_FALSE(file.has("x/y"));
  const Hdf5Dataset d = file.open_dataset("weight/model.layers.0.w");
  CHECK(d.type() == Hdf5Type::f32);
  CHECK(d.shape() == Shape{300, 200});
  float block[6];
  d.read({123, 45}, {2, 3}, std::as_writable_bytes(std::span(block)));
  for (int i = 0; i < 6; ++i) CHECK(block[i] == static_cast<float>((123 + i / 3) * 200 + 45 + i % 3));
  const Hdf5Dataset tokens = file.open_dataset("tokens");
  CHECK(tokens.shape() == Shape{5000});
  std::uint16_t pair[2];
  tokens.read({2999}, {2}, std::as_writable_bytes(std::span(pair)));
  CHECK(pair[0] == 2);
  CHECK(pair[1] == 3);
  bfloat16 halves[3];
  const Hdf5Dataset b = file.open_dataset("exp_avg/b");
  CHECK(b.type() == Hdf5Type::bf16);
  b.read(std::as_writable_bytes(std::span(halves)));
  CHECK(static_cast<float>(halves[1]) == -2.5f);
  CHECK(file.open_dataset("empty").shape() == Shape{0, 3});
  double scalar = 0;
  file.open_dataset("scalar").read(std::as_writable_bytes(std::span(&scalar, 1)));
  CHECK(scalar == 0.1);
  CHECK(file.read_integer("/", "version") == -7);
  CHECK(file.read_text("weight/model.layers.0.w", "text") == "h\xc3\xa9llo");
  CHECK(file.read_text("/", "nothing").empty());

  CHECK_THROWS_AS(file.open_dataset("nope"), Error);
  CHECK_THROWS_AS(file.read_integer("/", "nothing"), Error);
  CHECK_THROWS_AS(file.read_text("/", "version"), Error);
  std::vector<std::byte> two(2 * 200 * 4);
  CHECK_THROWS_WITH(d.read({299, 0}, {2, 200}, two),
                    t / "a.h5" + ": 'weight/model.layers.0.w': block (2, 200) at (299, 0) lies outside (300, 200)");
}

TEST_CASE("HDF5: errors carry the code of the opener") {
  const Temporary t;
  write_sample(system_files(), t / "a.h5");
  put(t / "text.h5", std::string(100, 'x'));
  put(t / "short.h5", "x");
  for (const char* name : {"text.h5", "short.h5", "absent.h5"}) {
    try {
      Hdf5File::open(system_files(), t / name, ExitCode::checkpoint);
      FAIL(name);
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::checkpoint);
      CHECK(std::string(e.what()).find(t / name) != std::string::npos);
    }
  }
  CHECK_THROWS_AS(Hdf5File::create(system_files(), t / "a.h5"), FileError);  // exists
  CHECK_THROWS_AS(Hdf5File::create(system_files(), t / "no/such/a.h5"), FileError);
}

TEST_CASE("HDF5: a disk that fills at any write is one error, and nothing crashes later") {
  const Temporary t;
  const FaultyFiles counting(system_files(), full_disk(1 << 20));
  write_sample(counting, t / "whole.h5");
  const int needed = counting.calls();
  REQUIRE(needed > 5);
  for (int k = 0; k < needed; ++k) {
    try {
      write_sample(FaultyFiles(system_files(), full_disk(k)), t / "faulty.h5");
      FAIL("write " << k << " of " << needed << " failed and nobody said so");
    } catch (const Error& e) {
      CHECK(e.code() == ExitCode::write);
      CHECK(std::string(e.what()).find("injected: cannot ") == 0);
    }
  }
  write_sample(system_files(), t / "faulty.h5");
  CHECK(read_all(system_files(), t / "faulty.h5") == read_all(system_files(), t / "whole.h5"));
}

TEST_CASE("HDF5: truncated and damaged files are errors or read the same, and never crash") {
  const Temporary t;
  write_sample(system_files(), t / "a.h5");
  const std::string good = read_file(system_files(), t / "a.h5");
  const std::uint64_t digest = read_all(system_files(), t / "a.h5");
  std::mt19937_64 random(1);
  int errors = 0, same = 0;
  const auto attempt = [&](const std::string& bytes) {
    put(t / "bad.h5", bytes);
    try {
      // A flip in space that nothing uses changes nothing; anywhere else it must be noticed.
      if (read_all(system_files(), t / "bad.h5") != digest) FAIL("damage went unnoticed");
      ++same;
    } catch (const Error&) {
      ++errors;
    }
  };
  for (int i = 0; i < 200; ++i) attempt(good.substr(0, random() % good.size()));
  CHECK(errors == 200);
  for (int i = 0; i < 1200; ++i) {
    std::string bad = good;
    // The last bytes are metadata; data is most of the file.
    const std::size_t span = i % 2 ? good.size() : 4096;
    const std::size_t at = i % 4 ? random() % span : good.size() - 1 - random() % 8192;
    bad[at] = static_cast<char>(bad[at] ^ static_cast<char>(1 + random() % 255));
    attempt(bad);
  }
  CHECK(errors > 500);
}

TEST_CASE("the streaming hash equals the hash of the whole") {
  std::vector<std::byte> bytes(100000);
  std::mt19937_64 random(3);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  Xxh3Hasher hasher;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t n = std::min<std::size_t>(bytes.size() - at, random() % 5000);
    hasher.update(std::span(bytes).subspan(at, n));
    at += n;
  }
  CHECK(hasher.digest() == xxh3(bytes));
  hasher.reset();
  CHECK(hasher.digest() == xxh3(std::string_view("")));
  CHECK(xxh3(std::string_view("")) == 0x2d06800538d394c2ull);  // the reference value of XXH3_64bits, seed 0
}
