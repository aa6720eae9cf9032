#pragma once
// Makes the Params of a tensor-parallel model from the names and shapes of Hugging Face's tensors.

#include <string>
#include <vector>

#include "lib/core/thread_pool.h"
#include "lib/layers/param.h"

namespace dstrain {

// Rows [begin, begin + rows) of the output dimension of one tensor in a file whose output dimension is `file_rows`.
struct RowPart {
  std::string name;
  Index file_rows = 0;
  Index begin = 0;
  Index rows = 0;
  PreReduce reduce = PreReduce::none;
  bool owned = true;
};

// Columns [begin, begin + columns) of the input dimension, `file_columns` in all.
struct ColumnPart {
  Index file_columns = 0;
  Index begin = 0;
  Index columns = 0;
};

// A matrix of the parts, one below the other, then `padding` rows of zeros.
Param weight_param(const std::vector<RowPart>& parts, const ColumnPart& columns, bool transposed, float std,
                   Index padding = 0);
// A vector of the parts, one after another.
Param vector_param(const std::vector<RowPart>& parts, Init init);

// The part of `n` rows that rank shard.rank holds when shard.size divides n.
RowPart shard_rows(const std::string& name, Index n, TensorShard shard);
// All n rows on every rank; rank 0 owns them.
RowPart whole_rows(const std::string& name, Index n, TensorShard shard);

// The vocabulary padded to a multiple of tensor * 128 (128-byte rows of any dtype, even shards).
Index padded_vocabulary(Index vocabulary, int tensor);

// The key-value heads of one rank: kv_heads / tensor of them, or one that tensor / kv_heads ranks share.
struct KvShard {
  Index first = 0;
  Index heads = 0;
  Index replicas = 1;
  bool owned = true;
};
KvShard kv_shard(Index kv_heads, TensorShard shard);

// Initial values of the master into `memory` (param.numel(), laid out as the Param): normal by (seed, tensor name,
// element index in the file), so that they do not depend on any layout. Padding becomes 0.
void initialize(const Param& param, std::uint64_t seed, float* memory, ThreadPool& pool);

// Copies between a Param's storage of float32 (`memory`, laid out as the Param) and a piece in the file's orientation.
void scatter_piece(const Param& param, const Piece& piece, const float* file, float* memory);
void gather_piece(const Param& param, const Piece& piece, const float* memory, float* file);

}  // namespace dstrain
