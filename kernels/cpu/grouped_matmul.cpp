#include "kernels/grouped_matmul.h"

#include <vector>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/loops.h"
#include "kernels/swiglu.h"

namespace dstrain {

namespace {

constexpr Index kTileRows = 256, kTileColumns = 512;  // of a product; they depend on nothing but the group's size

struct Operand {
  const float* data;
  Index stride;
};

Operand operand(Stream& stream, const Tensor& t, const Tensor& rows_of, Index rows) {
  if (t.dtype == DType::f32 && !rows_of.defined()) return {t.as<float>(), t.stride(0)};
  const Tensor copy = stream.workspace().allocate({rows, t.dim(1)});
  const std::int32_t* const from = rows_of.defined() ? rows_of.as<std::int32_t>() : nullptr;
  cpu::dispatch_float(t.dtype, [&](auto zero) {
    using T = decltype(zero);
    cpu::parallel_rows(stream, rows, t.dim(1), [&](Index p) {
      cpu::convert(cpu::row<float>(copy, p), cpu::row<T>(t, from ? from[p] : p), t.dim(1));
    });
  });
  return {copy.as<float>(), copy.stride(0)};
}

// body(group, first row, end row, first column, end column) for tiles that cover every group's rows and `columns`.
template <class F>
void for_tiles(Stream& stream, const std::int32_t* offsets, Index groups, Index columns, F&& body) {
  const Index across = (columns + kTileColumns - 1) / kTileColumns;
  std::int32_t before[1026] = {};  // tiles of rows before each group
  for (Index g = 0; g < groups; ++g)
    before[g + 1] = before[g] + static_cast<std::int32_t>((offsets[g + 1] - offsets[g] + kTileRows - 1) / kTileRows);
  stream.pool().parallel_for(before[groups] * across, [&](Index tile) {
    const auto down = static_cast<std::int32_t>(tile / across);
    const Index g = std::upper_bound(before, before + groups + 1, down) - before - 1;
    const Index begin = offsets[g] + (down - before[g]) * kTileRows, column = tile % across * kTileColumns;
    body(g, begin, std::min<Index>(offsets[g + 1], begin + kTileRows), column,
         std::min(columns, column + kTileColumns));
  });
}

}  // namespace

void run(Cpu, Stream& stream, const GroupedMatmul& op) {
  const Index rows = op.c.dim(0), n = op.c.dim(1), k = op.a.dim(1);
  if (rows == 0 || n == 0) return;
  const ArenaScope scope(stream.workspace());
  const bool half = op.c.dtype == DType::bf16;
  const Operand a = operand(stream, op.a, op.rows_of, rows), b = operand(stream, op.b, {}, op.b.dim(0));
  const Tensor c = half ? stream.workspace().allocate({rows, n}) : op.c;
  for_tiles(stream, op.offsets.as<std::int32_t>(), op.groups(), n,
            [&](Index g, Index begin, Index end, Index column, Index column_end) {
              const float* const matrix =
                  op.transpose_b ? b.data + (g * n + column) * b.stride : b.data + g * k * b.stride + column;
              cpu::sgemm(false, op.transpose_b, end - begin, column_end - column, k, 1.0f, a.data + begin * a.stride,
                         a.stride, matrix, b.stride, 0.0f, cpu::row<float>(c, begin) + column, c.stride(0));
              if (!half) return;
              for (Index r = begin; r < end; ++r)
                cpu::convert(cpu::row<bfloat16>(op.c, r) + column, cpu::row<float>(c, r) + column, column_end - column);
            });
  if (op.activated.defined()) run(Cpu{}, stream, SwiGluForward{.y = op.activated, .gate_up = op.c});
}

void run(Cpu, Stream& stream, const GroupedGradient& op) {
  const Index m = op.a.dim(1), n = op.b.dim(1), groups = op.groups();
  if (m == 0 || n == 0) return;
  const ArenaScope scope(stream.workspace());
  const bool half = op.c.dtype == DType::bf16;
  const Tensor sums = half ? stream.workspace().allocate(op.c.shape) : op.c;
  const Operand a = operand(stream, op.a, op.a_rows_of, op.rows), b = operand(stream, op.b, op.b_rows_of, op.rows);
  const std::int32_t* const offsets = op.offsets.as<std::int32_t>();
  const Index down = (m + kTileColumns - 1) / kTileColumns, across = (n + kTileColumns - 1) / kTileColumns;
  stream.pool().parallel_for(groups * down * across, [&](Index tile) {
    const Index g = tile / across / down, row = tile / across % down * kTileColumns,
                column = tile % across * kTileColumns;
    const Index height = std::min(kTileColumns, m - row), width = std::min(kTileColumns, n - column);
    float* const c = cpu::row<float>(sums, g * m + row) + column;
    const Index first = offsets[g], count = offsets[g + 1] - first;
    const bool accumulate = op.write == Write::accumulate;
    if (count == 0 && accumulate) return;
    if (count == 0)
      for (Index r = 0; r < height; ++r) std::fill_n(c + r * sums.stride(0), width, 0.0f);
    else
      cpu::sgemm(true, false, height, width, count, 1.0f, a.data + first * a.stride + row, a.stride,
                 b.data + first * b.stride + column, b.stride, accumulate && !half ? 1.0f : 0.0f, c, sums.stride(0));
    for (Index r = 0; r < height && half; ++r) {
      float* const from = c + r * sums.stride(0);
      bfloat16* const to = cpu::row<bfloat16>(op.c, g * m + row + r) + column;
      for (Index j = 0; j < width && accumulate; ++j) from[j] += cpu::to_float(to[j]);
      cpu::convert(to, from, width);
    }
  });
}

}  // namespace dstrain
