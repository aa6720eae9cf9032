#include "lib/checkpoint/shard.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "lib/checkpoint/names.h"
#include "lib/core/hash.h"

namespace dstrain {

namespace {

constexpr Index kStaged = 1 << 20;             // elements copied at a time
constexpr std::uint64_t kHashed = 4ull << 20;  // bytes hashed at a time

std::uint64_t hash_block(const File& file, std::uint64_t begin, std::uint64_t end) {
  Xxh3Hasher hasher;
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min(kHashed, end - begin)));
  for (std::uint64_t at = begin; at < end; at += kHashed) {
    const std::span<std::byte> part(buffer.data(), static_cast<std::size_t>(std::min(kHashed, end - at)));
    file.pread(part, at);
    hasher.update(part);
  }
  return hasher.digest();
}

// Rows of the chunks of a matrix of `columns` (HDF5's are 1 MiB), four at a time.
Index rows_at_a_time(Index columns) { return 4 * std::max<Index>(1, kStaged / 4 / columns); }

void write_slab(Hdf5File& file, const std::string& dataset, const TensorSlab& slab, std::vector<float>& staged) {
  const Index rows = slab.rows(), columns = slab.columns();
  const bool vector = slab.global.rank() == 1;
  Hdf5Dataset to = file.create_dataset(dataset, Hdf5Type::f32, vector ? Shape{columns} : Shape{rows, columns});
  // Some MiB at a time, in whole chunks: HDF5 hands them on to the file before the next.
  if (slab.make) {
    const Index step = rows_at_a_time(columns);
    for (Index at = 0; at < rows; at += step) {
      const Index n = std::min(step, rows - at);
      staged.resize(static_cast<std::size_t>(n * columns));
      slab.make(at, n, staged.data());
      const auto bytes = std::as_bytes(std::span(staged));
      if (vector)
        to.write({0}, {columns}, bytes);
      else
        to.write({at, 0}, {n, columns}, bytes);
    }
    return;
  }
  if (rows == 1 || slab.row_stride == columns) {
    const Index count = rows * columns, step = rows == 1 ? kStaged : rows_at_a_time(columns) * columns;
    for (Index at = 0; at < count; at += step) {
      const Index n = std::min(step, count - at);
      const auto bytes = std::as_bytes(std::span(slab.data + at, static_cast<std::size_t>(n)));
      if (vector)
        to.write({at}, {n}, bytes);
      else if (rows == 1)
        to.write({0, at}, {1, n}, bytes);
      else
        to.write({at / columns, 0}, {n / columns, columns}, bytes);
    }
    return;
  }
  const Index step = rows_at_a_time(columns);
  for (Index at = 0; at < rows; at += step) {
    const Index n = std::min(step, rows - at);
    staged.resize(static_cast<std::size_t>(n * columns));
    for (Index r = 0; r < n; ++r)
      std::memcpy(staged.data() + r * columns, slab.data + (at + r) * slab.row_stride,
                  static_cast<std::size_t>(columns) * sizeof(float));
    to.write({at, 0}, {n, columns}, std::as_bytes(std::span(staged)));
  }
}

}  // namespace

WrittenShard write_shard(const Files& files, const std::string& directory, int rank, Index step,
                         std::span<const TensorSlab> slabs) {
  WrittenShard written;
  written.record.file = shard_name(rank);
  Hdf5File hdf5 = Hdf5File::create(files, join_path(directory, written.record.file));
  hdf5.write_attribute("/", "step", step);
  hdf5.write_attribute("/", "rank", static_cast<std::int64_t>(rank));
  std::map<std::string, int> parts;
  std::vector<float> staged;
  for (const TensorSlab& slab : slabs) {
    slab.validate();
    if (slab.extent.numel() == 0) continue;
    std::string dataset = slab.role + "/" + slab.name;
    if (const int part = parts[dataset]++; part > 0) dataset.append("@").append(std::to_string(part));
    write_slab(hdf5, dataset, slab, staged);
    written.tensors.push_back(
        {slab.name, slab.role, slab.global, {{rank, dataset, slab.offset, slab.extent, slab.transposed}}});
  }
  const std::unique_ptr<File> file = hdf5.close();
  written.record.size = file->size();
  for (std::uint64_t at = 0; at < written.record.size; at += kHashBlock)
    written.record.blocks.push_back(hash_block(*file, at, std::min(at + kHashBlock, written.record.size)));
  file->sync();
  file->close();
  return written;
}

void read_back(const Files& files, const std::string& path, const ShardRecord& record) {
  check_shard_size(files, path, record);
  files.open(path, OpenMode::read)->forget();
  check_shard_blocks(files, path, record);
}

void check_shard_size(const Files& files, const std::string& path, const ShardRecord& record) {
  require(files.exists(path), ExitCode::checkpoint, "{}: the file is missing", path);
  const std::uint64_t size = files.open(path, OpenMode::read)->size();
  require(size == record.size, ExitCode::checkpoint, "{}: {} bytes, the manifest says {}", path, size, record.size);
}

void check_shard_blocks(const Files& files, const std::string& path, const ShardRecord& record, std::size_t first,
                        std::size_t step, ThreadPool* pool) {
  if (first >= record.blocks.size()) return;
  const auto file = files.open(path, OpenMode::read);
  auto check_block = [&](std::int64_t i) {
    const std::size_t b = first + static_cast<std::size_t>(i) * step;
    const std::uint64_t begin = b * kHashBlock, end = std::min(begin + kHashBlock, record.size);
    const std::uint64_t found = hash_block(*file, begin, end);
    require(found == record.blocks[b], ExitCode::checkpoint, "{}: bytes {} to {} have hash {}, the manifest says {}",
            path, begin, end, hex(found), hex(record.blocks[b]));
  };
  const auto count = static_cast<std::int64_t>((record.blocks.size() - first + step - 1) / step);
  if (pool) return pool->parallel_for(count, check_block);
  for (std::int64_t i = 0; i < count; ++i) check_block(i);
}

Index read_entry(const Hdf5File& file, const EntryRecord& entry, const TensorSlab& slab) {
  const int d = slab.global.rank();
  // The common rectangle, in the tensor's axes; vectors get a second axis of one.
  Index begin[2] = {0, 0}, count[2] = {1, 1}, entry_at[2] = {0, 0}, slab_at[2] = {0, 0};
  for (int i = 0; i < d; ++i) {
    const Index end = std::min(entry.offset[i] + entry.extent[i], slab.offset[i] + slab.extent[i]);
    begin[i] = std::max(entry.offset[i], slab.offset[i]);
    count[i] = end - begin[i];
    if (count[i] <= 0) return 0;
    entry_at[i] = begin[i] - entry.offset[i];
    slab_at[i] = begin[i] - slab.offset[i];
  }
  const Hdf5Dataset dataset = file.open_dataset(entry.dataset);
  const Shape stored = d == 1             ? entry.extent
                       : entry.transposed ? Shape{entry.extent[1], entry.extent[0]}
                                          : entry.extent;
  require(dataset.type() == Hdf5Type::f32 && dataset.shape() == stored, ExitCode::checkpoint,
          "{}: '{}' is {} {}, the manifest says f32 {}", file.path(), entry.dataset, name_of(dataset.type()),
          dataset.shape().to_string(), stored.to_string());
  // The tensor's axes along the rows and columns of what is stored, and the steps in memory along them.
  const int row_axis = d == 1 ? 1 : entry.transposed ? 1 : 0, column_axis = 1 - row_axis;
  const Index steps[2] = {d == 1 || slab.transposed ? 1 : slab.row_stride, slab.transposed ? slab.row_stride : 1};
  const Index row_step = steps[row_axis], column_step = steps[column_axis];
  float* to = slab.data + slab_at[0] * steps[0] + (d == 1 ? 0 : slab_at[1] * steps[1]);
  const Index rows = count[row_axis], columns = count[column_axis];
  const Index step = std::max<Index>(1, kStaged / columns);
  std::vector<float> staged;
  for (Index at = 0; at < rows; at += step) {
    const Index n = std::min(step, rows - at);
    staged.resize(static_cast<std::size_t>(n * columns));
    const auto memory = std::as_writable_bytes(std::span(staged));
    if (d == 1) {
      dataset.read({entry_at[0]}, {columns}, memory);
    } else {
      dataset.read({entry_at[row_axis] + at, entry_at[column_axis]}, {n, columns}, memory);
    }
    for (Index r = 0; r < n; ++r) {
      const float* from = staged.data() + r * columns;
      float* row = to + (at + r) * row_step;
      if (column_step == 1) {
        std::memcpy(row, from, static_cast<std::size_t>(columns) * sizeof(float));
      } else {
        for (Index c = 0; c < columns; ++c) row[c * column_step] = from[c];
      }
    }
  }
  return count[0] * count[1];
}

}  // namespace dstrain
