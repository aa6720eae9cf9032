#pragma once
// HDF5 files over lib/core's Files: every byte goes through File::pread and pwrite, so faults, full disks and fsync act
// on it as on any other file. What we write: LATEST format (checksummed metadata), no object times, chunks of about 1
// MiB with Fletcher32, little-endian. The same calls give the same bytes.
//
// Errors: FileError of the file beneath when that is the cause; else Error{ExitCode::write} when writing and the code
// given to open() when reading, with file, object and HDF5's own innermost words. Nothing is printed by HDF5.
// A file and its datasets are used by one thread at a time; different files by any threads (HDF5's own lock).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lib/core/dtype.h"
#include "lib/core/errors.h"
#include "lib/core/files.h"
#include "lib/core/shape.h"

namespace dstrain {

// Element types in files. bf16 is a floating-point type of its own, not a u16.
enum class Hdf5Type : unsigned char { f32, bf16, f64, i32, i64, u8, u16, u32, u64 };
Hdf5Type hdf5_type(DType dtype);
std::size_t size_of(Hdf5Type type);
const char* name_of(Hdf5Type type);

// A dataset; valid until its file is closed. Offsets and extents have the dataset's rank.
class Hdf5Dataset {
 public:
  Hdf5Dataset() = default;
  Hdf5Dataset(Hdf5Dataset&& other) noexcept;
  Hdf5Dataset& operator=(Hdf5Dataset&& other) noexcept;
  ~Hdf5Dataset();

  Hdf5Type type() const { return type_; }
  const Shape& shape() const { return shape_; }
  const std::string& name() const { return name_; }

  // A block of elements, in C order, contiguous in memory. REQUIRES: memory.size() == numel(extent) * size_of(type()).
  // A block outside the shape, or a chunk whose Fletcher32 is wrong, is an Error.
  void read(const Shape& offset, const Shape& extent, std::span<std::byte> memory) const;
  void write(const Shape& offset, const Shape& extent, std::span<const std::byte> memory);
  // All of it.
  void read(std::span<std::byte> memory) const { read(origin(), shape_, memory); }
  void write(std::span<const std::byte> memory) { write(origin(), shape_, memory); }
  // Only datasets created extendible: appends rows in the first dimension.
  void append(Index rows, std::span<const std::byte> memory);

 private:
  friend class Hdf5File;
  Shape origin() const;
  std::int64_t transfer(const Shape& offset, const Shape& extent, std::size_t bytes) const;

  std::int64_t id_ = -1;
  Hdf5Type type_ = Hdf5Type::f32;
  Shape shape_;
  std::string name_;
  std::shared_ptr<struct Hdf5State> state_;
};

class Hdf5File {
 public:
  // Creates `path` (OpenMode::create or replace).
  static Hdf5File create(const Files& files, const std::string& path, OpenMode mode = OpenMode::create);
  // Opens for reading. Only files in HDF5's checksummed format (superblock version 2 or 3) are accepted; errors, of
  // later reads too, carry `code`. `cache_bytes`: chunks of each dataset kept in memory.
  static Hdf5File open(const Files& files, const std::string& path, ExitCode code = ExitCode::data,
                       std::size_t cache_bytes = 1u << 20);

  Hdf5File() = default;
  Hdf5File(Hdf5File&& other) noexcept;
  Hdf5File& operator=(Hdf5File&& other) noexcept;
  // A file being written is left as it is on disk, incomplete, unless close() was called.
  ~Hdf5File();

  // Creates a dataset and the groups above it: "weight/model.embed_tokens.weight". Contents are undefined until
  // written. `extendible`: the first dimension grows by append(). `chunk_bytes`: about the size of a chunk.
  Hdf5Dataset create_dataset(const std::string& name, Hdf5Type type, const Shape& shape, bool extendible = false,
                             std::size_t chunk_bytes = 1u << 20);
  Hdf5Dataset open_dataset(const std::string& name) const;
  bool has(const std::string& name) const;  // a group or dataset
  // Full names of all datasets below `group` ("/" for all), sorted.
  std::vector<std::string> datasets(const std::string& group = "/") const;

  // Attributes of a group or dataset; "/" is the file. Written once.
  void write_attribute(const std::string& object, const std::string& name, std::int64_t value);
  void write_attribute(const std::string& object, const std::string& name, const std::string& value);
  std::int64_t read_integer(const std::string& object, const std::string& name) const;
  std::string read_text(const std::string& object, const std::string& name) const;

  // Writes everything out, ends HDF5's use of the file and hands it over, still open: hash it, sync() it, close() it.
  // The datasets become invalid.
  std::unique_ptr<File> close();
  const std::string& path() const;

 private:
  void drop() noexcept;

  std::int64_t id_ = -1;
  std::shared_ptr<struct Hdf5State> state_;
};

}  // namespace dstrain
