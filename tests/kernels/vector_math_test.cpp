#include "kernels/cpu/vector_math.h"

#include <algorithm>

#include "kernels/cpu/blas.h"
#include "tests/support/catch.h"

using namespace dstrain;

namespace {

double ulps(float found, double truth) {
  const float near = std::fabs(static_cast<float>(truth));
  const double spacing = std::max(static_cast<double>(std::nextafter(near, INFINITY)) - near, 0x1p-149);
  return std::abs(found - truth) / spacing;
}

// The largest error over every step-th float of [low, high], signs apart.
template <class F, class G>
double worst(float low, float high, std::uint32_t step, F&& f, G&& truth) {
  double most = 0;
  for (std::uint32_t b = std::bit_cast<std::uint32_t>(low); b <= std::bit_cast<std::uint32_t>(high); b += step) {
    const float x = std::bit_cast<float>(b);
    most = std::max({most, ulps(f(x), truth(x)), ulps(f(-x), truth(-x))});
  }
  return most;
}

}  // namespace

TEST_CASE("fast_exp is within 2 ulp, and right at its ends") {
  const auto f = [](float x) { return cpu::fast_exp(x); };
  const auto truth = [](float x) { return std::exp(static_cast<double>(x)); };
  CHECK(worst(1e-30f, 87.329f, 511, f, truth) <= 2.0);
  CHECK(cpu::fast_exp(0.0f) == 1.0f);
  CHECK(cpu::fast_exp(-INFINITY) == 0.0f);
  CHECK(cpu::fast_exp(-88.0f) == 0.0f);
  CHECK(cpu::fast_exp(INFINITY) == INFINITY);
  CHECK(cpu::fast_exp(88.73f) == INFINITY);
  CHECK(ulps(cpu::fast_exp(88.722831f), std::exp(static_cast<double>(88.722831f))) <= 2.0);
  CHECK(std::isnan(cpu::fast_exp(NAN)));
}

TEST_CASE("fast_erf is within 4 ulp") {
  const auto f = [](float x) { return cpu::fast_erf(x); };
  const auto truth = [](float x) { return std::erf(static_cast<double>(x)); };
  CHECK(worst(1e-20f, 20.0f, 1021, f, truth) <= 4.0);
  CHECK(cpu::fast_erf(0.0f) == 0.0f);
  CHECK(cpu::fast_erf(-INFINITY) == -1.0f);
  CHECK(std::isnan(cpu::fast_erf(NAN)));
}

TEST_CASE("fast_sincos is within 1 ulp up to 2^24") {
  const auto sine = [](float x) {
    float s = 0, c = 0;
    cpu::fast_sincos(x, s, c);
    return s;
  };
  const auto cosine = [](float x) {
    float s = 0, c = 0;
    cpu::fast_sincos(x, s, c);
    return c;
  };
  CHECK(worst(1e-20f, 0x1p24f, 2039, sine, [](float x) { return std::sin(static_cast<double>(x)); }) <= 1.0);
  CHECK(worst(1e-20f, 0x1p24f, 2039, cosine, [](float x) { return std::cos(static_cast<double>(x)); }) <= 1.0);
  CHECK(sine(0.0f) == 0.0f);
  CHECK(cosine(0.0f) == 1.0f);
}

TEST_CASE("sgemm takes empty sizes and overwrites what c held") {
  float c[4] = {NAN, NAN, NAN, NAN};
  const float a[2] = {2, 3}, b[2] = {5, 7};
  cpu::sgemm(false, false, 2, 2, 1, 1, a, 1, b, 2, 0, c, 2);
  CHECK((c[0] == 10 && c[1] == 14 && c[2] == 15 && c[3] == 21));
  cpu::sgemm(false, false, 2, 2, 0, 1, a, 1, b, 2, 1, c, 2);
  CHECK(c[3] == 21);
  cpu::sgemm(false, false, 0, 2, 1, 1, a, 1, b, 2, 0, c, 2);
  CHECK(c[0] == 10);
  cpu::sgemm(false, false, 2, 2, 0, 1, a, 1, b, 2, 0, c, 2);
  CHECK((c[0] == 0 && c[3] == 0));
}

TEST_CASE("BLAS names itself and its kernel") {
  const cpu::BlasInfo info = cpu::blas_info();
  CHECK(!info.name.empty());
  CHECK(!info.kernel.empty());
  CHECK(cpu::slow_kernel() == !info.wanted.empty());
  CHECK(info.wanted != info.kernel);
}
