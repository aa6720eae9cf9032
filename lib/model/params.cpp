#include "lib/model/params.h"

#include <algorithm>
#include <utility>

#include "lib/core/rng.h"

namespace dstrain {

Param weight_param(const std::vector<RowPart>& parts, const ColumnPart& columns, bool transposed, float std,
                   Index padding) {
  Param param;
  param.init_std = std;
  Index row = 0;
  for (const RowPart& part : parts) {
    Piece piece{.name = part.name,
                .global = {part.file_rows, columns.file_columns},
                .offset = {part.begin, columns.begin},
                .extent = {part.rows, columns.columns},
                .transposed = transposed,
                .row = row,
                .reduce = part.reduce,
                .owned = part.owned};
    if (transposed)
      for (Shape* s : {&piece.global, &piece.offset, &piece.extent}) std::swap((*s)[0], (*s)[1]);
    param.pieces.push_back(piece);
    row += part.rows;
  }
  param.shape = {row + padding, columns.columns};
  return param;
}

Param vector_param(const std::vector<RowPart>& parts, Init init) {
  Param param;
  param.init = init;
  param.decay = false;
  Index row = 0;
  for (const RowPart& part : parts) {
    param.pieces.push_back({.name = part.name,
                            .global = {part.file_rows},
                            .offset = {part.begin},
                            .extent = {part.rows},
                            .row = row,
                            .reduce = part.reduce,
                            .owned = part.owned});
    row += part.rows;
  }
  param.shape = {row};
  return param;
}

RowPart shard_rows(const std::string& name, Index n, TensorShard shard) {
  check(n % shard.size == 0, "{}: {} rows on {} ranks", name, n, shard.size);
  const Index rows = n / shard.size;
  return {.name = name, .file_rows = n, .begin = rows * shard.rank, .rows = rows};
}

RowPart whole_rows(const std::string& name, Index n, TensorShard shard) {
  return {.name = name, .file_rows = n, .begin = 0, .rows = n, .owned = shard.rank == 0};
}

Index padded_vocabulary(Index vocabulary, int tensor) {
  const Index step = Index{tensor} * 128;
  return (vocabulary + step - 1) / step * step;
}

KvShard kv_shard(Index kv_heads, TensorShard shard) {
  if (kv_heads % shard.size == 0) {
    const Index n = kv_heads / shard.size;
    return {.first = n * shard.rank, .heads = n};
  }
  check(shard.size % kv_heads == 0, "{} key-value heads on {} tensor ranks", kv_heads, shard.size);
  const Index replicas = shard.size / kv_heads;
  return {.first = shard.rank / replicas, .heads = 1, .replicas = replicas, .owned = shard.rank % replicas == 0};
}

namespace {

// Rows [begin, end) of a piece, along the file's first axis.
void initialize_rows(const Param& param, const Piece& piece, std::uint64_t seed, Index begin, Index end,
                     float* memory) {
  const Philox generator = philox(seed, piece.name);
  const Index width = param.row_width();
  const bool matrix = piece.global.rank() == 2;
  const Index stride = matrix ? piece.global[1] : 1;  // of the file's first axis
  for (Index i = begin; i < end; ++i) {
    const Index n = matrix ? piece.extent[1] : 1;
    const Index first = (piece.offset[0] + i) * stride + (matrix ? piece.offset[1] : 0);
    std::array<float, 4> four{};
    Index group = -1;
    for (Index j = 0; j < n; ++j) {
      const Index element = first + j;
      float value = param.init == Init::ones ? 1.0f : 0.0f;
      if (param.init == Init::normal) {
        if (element / 4 != group) {
          group = element / 4;
          four = normal4(generator, 0, static_cast<std::uint64_t>(group));
        }
        value = param.init_std * four[static_cast<std::size_t>(element % 4)];
      }
      memory[piece.transposed ? (piece.row + j) * width + i : (piece.row + i) * width + j] = value;
    }
  }
}

}  // namespace

void initialize(const Param& param, std::uint64_t seed, float* memory, ThreadPool& pool) {
  constexpr Index kElements = 1 << 16;  // that one thread makes at a time
  struct Part {
    const Piece* piece;
    Index begin, end;
  };
  std::vector<Part> parts;
  for (const Piece& piece : param.pieces) {
    const Index n = piece.global.rank() == 2 ? piece.extent[1] : 1,
                rows = std::max<Index>(1, kElements / std::max<Index>(1, n));
    for (Index i = 0; i < piece.extent[0]; i += rows) parts.push_back({&piece, i, std::min(piece.extent[0], i + rows)});
  }
  const Index all = param.numel();
  pool.parallel_for((all + kElements - 1) / kElements, [&](std::int64_t i) {
    std::fill(memory + i * kElements, memory + std::min(all, (i + 1) * kElements), 0.0f);
  });
  pool.parallel_for(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i) {
    const Part& part = parts[static_cast<std::size_t>(i)];
    initialize_rows(param, *part.piece, seed, part.begin, part.end, memory);
  });
}

namespace {
template <class Move>
void for_each_element(const Param& param, const Piece& piece, Move move) {
  const Index width = param.row_width(), rows = piece.rows(), columns = piece.columns();
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < columns; ++c)
      move((piece.row + r) * width + c, piece.transposed ? c * rows + r : r * columns + c);
}
}  // namespace

void scatter_piece(const Param& param, const Piece& piece, const float* file, float* memory) {
  for_each_element(param, piece, [&](Index in_memory, Index in_file) { memory[in_memory] = file[in_file]; });
}

void gather_piece(const Param& param, const Piece& piece, const float* memory, float* file) {
  for_each_element(param, piece, [&](Index in_memory, Index in_file) { file[in_file] = memory[in_memory]; });
}

}  // namespace dstrain
