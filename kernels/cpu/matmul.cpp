#include "kernels/matmul.h"

#include "kernels/cpu/blas.h"
#include "kernels/cpu/column_sums.h"
#include "kernels/gelu.h"

namespace dstrain {

namespace {

// Tiles of c depend on its shape only: near 512 on a side, where packing costs little, halved while they are too few
// for some threads to share evenly.
constexpr Index kTileSide = 512, kSmallestSide = 128, kEnoughTiles = 8;

struct Tiling {
  Index rows, columns;  // of a tile, multiples of 16
  Index row_tiles, column_tiles;
};

Index parts(Index n, Index side) { return std::max<Index>(1, (n + side / 2) / side); }

Tiling tiling(Index m, Index n) {
  Index down = parts(m, kTileSide), across = parts(n, kTileSide);
  while (down * across < kEnoughTiles && std::max(m / down, n / across) >= 2 * kSmallestSide) {
    (m / down >= n / across ? down : across) *= 2;
  }
  const auto side = [](Index size, Index count) { return ((size + count - 1) / count + 15) / 16 * 16; };
  Tiling t{side(m, down), side(n, across), 0, 0};
  t.row_tiles = (m + t.rows - 1) / t.rows;
  t.column_tiles = (n + t.columns - 1) / t.columns;
  return t;
}

// An operand in f32: its own memory, or a dense copy in the workspace.
struct Operand {
  const float* data;
  Index stride;
};
Operand operand(Stream& stream, const Tensor& t) {
  if (t.dtype == DType::f32) return {t.as<float>(), t.stride(0)};
  const Tensor copy = stream.workspace().allocate(t.shape);
  cpu::parallel_rows(stream, t.dim(0), t.dim(1),
                     [&](Index i) { cpu::convert(cpu::row<float>(copy, i), cpu::row<bfloat16>(t, i), t.dim(1)); });
  return {copy.as<float>(), copy.stride(0)};
}

// c = op(a) op(b) + bias, or c += op(a) op(b).
void product(Stream& stream, const Matmul& op) {
  const Index m = op.m(), n = op.n(), k = op.k();
  if (m == 0 || n == 0) return;
  const ArenaScope scope(stream.workspace());
  const Operand a = operand(stream, op.a), b = operand(stream, op.b);
  const bool half = op.c.dtype == DType::bf16, accumulate = op.write == Write::accumulate;
  const Tensor c = half ? stream.workspace().allocate(op.c.shape) : op.c;
  const float* const bias = op.bias.defined() ? cpu::as_f32(stream, op.bias) : nullptr;
  const auto [rows, columns, row_tiles, column_tiles] = tiling(m, n);
  stream.pool().parallel_for(
      row_tiles * column_tiles, [&, rows = rows, columns = columns, column_tiles = column_tiles](Index tile) {
        const Index i = tile / column_tiles * rows, j = tile % column_tiles * columns;
        const Index height = std::min(rows, m - i), width = std::min(columns, n - j);
        const float* const a_tile = a.data + (op.transpose_a ? i : i * a.stride);
        const float* const b_tile = b.data + (op.transpose_b ? j * b.stride : j);
        cpu::sgemm(op.transpose_a, op.transpose_b, height, width, k, 1.0f, a_tile, a.stride, b_tile, b.stride,
                   accumulate && !half ? 1.0f : 0.0f, cpu::row<float>(c, i) + j, c.stride(0));
        if (bias == nullptr && !half) return;
        for (Index r = i; r < i + height; ++r) {
          float* const out = cpu::row<float>(c, r);
          if (bias != nullptr) {
#pragma omp simd
            for (Index s = j; s < j + width; ++s) out[s] += bias[s];
          }
          if (!half) continue;
          bfloat16* const stored = cpu::row<bfloat16>(op.c, r);
          if (accumulate) {
#pragma omp simd
            for (Index s = j; s < j + width; ++s) out[s] += cpu::to_float(stored[s]);
          }
          cpu::convert(stored + j, out + j, width);
        }
      });
}

}  // namespace

void run(Cpu, Stream& stream, const Matmul& op) {
  if (op.epilogue == Epilogue::gelu) {
    Matmul before = op;
    before.c = op.pre;
    product(stream, before);
    run(Cpu{}, stream, GeluForward{.y = op.c, .x = op.pre});
    return;
  }
  product(stream, op);
  if (op.epilogue == Epilogue::gelu_gradient) run(Cpu{}, stream, GeluBackward{.dx = op.c, .dy = op.c, .x = op.pre});
}

void run(Cpu, Stream& stream, const BiasGradient& op) {
  const Index rows = op.dy.dim(0), columns = op.dy.dim(1);
  const ArenaScope scope(stream.workspace());
  cpu::dispatch_float(op.dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    float* const sums[] = {op.grad.as<float>()};
    cpu::column_sums(stream, rows, columns, op.write, sums, [&](Index r, float* partial) {
      const T* const dy = cpu::row<T>(op.dy, r);
#pragma omp simd
      for (Index c = 0; c < columns; ++c) partial[c] += cpu::to_float(dy[c]);
    });
  });
}

}  // namespace dstrain
