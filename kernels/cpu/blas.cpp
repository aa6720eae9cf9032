#include "kernels/cpu/blas.h"

#include <cblas.h>

#include <algorithm>
#include <array>
#include <limits>

namespace dstrain::cpu {

namespace {

void set_up_once() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
}

blasint narrow(Index n) {
  check(n <= std::numeric_limits<blasint>::max(), "matmul: size {} is beyond this BLAS", n);
  return static_cast<blasint>(n);
}

}  // namespace

void sgemm(bool transpose_a, bool transpose_b, Index m, Index n, Index k, float alpha, const float* a, Index lda,
           const float* b, Index ldb, float beta, float* c, Index ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) c[i * ldc + j] = beta == 0 ? 0.0f : beta * c[i * ldc + j];
    return;
  }
  set_up_once();
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
              narrow(m), narrow(n), narrow(k), alpha, a, narrow(std::max(lda, transpose_a ? m : k)), b,
              narrow(std::max(ldb, transpose_b ? k : n)), beta, c, narrow(std::max(ldc, n)));
}

BlasInfo blas_info() {
  set_up_once();
  BlasInfo info{openblas_get_config(), openblas_get_corename(), ""};
#if defined(__x86_64__)
  constexpr std::array<const char*, 3> kAvx512{"SkylakeX", "Cooperlake", "SapphireRapids"};
  constexpr std::array<const char*, 2> kAvx2{"Haswell", "Zen"};
  const auto is_one_of = [&](const auto& names) {
    return std::any_of(names.begin(), names.end(), [&](const char* name) { return info.kernel == name; });
  };
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512 && !is_one_of(kAvx512)) info.wanted = kAvx512[0];
  if (!avx512 && __builtin_cpu_supports("avx2") && !is_one_of(kAvx2) && !is_one_of(kAvx512)) info.wanted = kAvx2[0];
#endif
  return info;
}

}  // namespace dstrain::cpu
