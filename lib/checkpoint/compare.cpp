#include "lib/checkpoint/compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

namespace dstrain {

namespace {

constexpr Index kElements = 4 << 20;  // read at a time

TensorSlab rows_of(const TensorRecord& t, Index begin, Index end, std::vector<float>& memory) {
  Shape offset = t.shape, extent = t.shape;
  for (int i = 0; i < offset.rank(); ++i) offset[i] = 0;
  offset[0] = begin;
  extent[0] = end - begin;
  memory.resize(static_cast<std::size_t>(extent.numel()));
  return {t.name, t.role, t.shape, offset, extent, false, memory.data(), t.shape.rank() == 2 ? t.shape[1] : 0};
}

void compare_elements(TensorDifference& d, const std::vector<float>& x, const std::vector<float>& y) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (const float v : {x[i], y[i]})
      if (std::isfinite(v)) d.largest_value = std::max(d.largest_value, static_cast<double>(std::abs(v)));
    if (std::memcmp(&x[i], &y[i], sizeof(float)) == 0) continue;
    ++d.different;
    const double by = std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i]));
    d.largest = std::max(d.largest, std::isfinite(by) ? by : std::numeric_limits<double>::infinity());
  }
}

}  // namespace

Comparison compare(Checkpoint& a, Checkpoint& b) {
  Comparison result;
  const auto state = [&](const char* what, auto x, auto y) {
    if (x != y) result.state.push_back(format("{}: {} and {}", what, x, y));
  };
  const CheckpointState &x = a.state(), &y = b.state();
  state("step", x.step, y.step);
  state("optimizer_step", x.optimizer_step, y.optimizer_step);
  state("seed", x.seed, y.seed);
  state("next_sample", x.next_sample, y.next_sample);
  state("tokens", x.tokens, y.tokens);
  state("config_hash", x.config_hash, y.config_hash);
  state("data_hash", x.data_hash, y.data_hash);

  std::set<std::pair<std::string, std::string>> names;
  for (const Checkpoint* c : {&a, &b})
    for (const TensorRecord& t : c->manifest().tensors) names.emplace(t.role, t.name);
  for (const auto& [role, name] : names) {
    const TensorRecord *in_a = a.manifest().find(name, role), *in_b = b.manifest().find(name, role);
    TensorDifference d{name, role, "", 0, 0, 0, 0};
    if (!in_a || !in_b) {
      d.problem = in_a ? "only in the first" : "only in the second";
    } else if (!(in_a->shape == in_b->shape)) {
      d.problem = format("{} and {}", in_a->shape.to_string(), in_b->shape.to_string());
    } else {
      ++result.compared;
      const Shape& shape = in_a->shape;
      d.elements = shape.numel();
      const Index width = shape.rank() == 2 ? std::max<Index>(1, shape[1]) : 1;
      const Index step = std::max<Index>(1, kElements / width);
      std::vector<float> values_a, values_b;
      for (Index at = 0; d.elements > 0 && at < shape[0]; at += step) {
        const Index end = std::min(shape[0], at + step);
        a.read(rows_of(*in_a, at, end, values_a));
        b.read(rows_of(*in_b, at, end, values_b));
        compare_elements(d, values_a, values_b);
      }
    }
    if (!d.problem.empty() || d.different > 0) result.tensors.push_back(std::move(d));
  }
  return result;
}

}  // namespace dstrain
