#include "lib/checkpoint/slab.h"

#include <algorithm>

namespace dstrain {

void TensorSlab::validate() const {
  const int d = global.rank();
  bool inside = (d == 1 || d == 2) && offset.rank() == d && extent.rank() == d && !(transposed && d == 1);
  for (int i = 0; inside && i < d; ++i)
    inside = offset[i] >= 0 && extent[i] >= 0 && offset[i] <= global[i] && extent[i] <= global[i] - offset[i];
  check(inside, "{} of {}: extent {} at {} is not a part of {}", role, name, extent.to_string(), offset.to_string(),
        global.to_string());
  check(extent.numel() == 0 || data != nullptr || make, "{} of {} has no memory", role, name);
  check(d == 1 || make || rows() <= 1 || row_stride >= columns(), "{} of {}: rows of {} every {} elements", role, name,
        columns(), row_stride);
}

std::vector<int> assign_writers(std::span<const Index> bytes, int replicas) {
  check(replicas >= 1, "{} replicas", replicas);
  std::vector<Index> load(static_cast<std::size_t>(replicas), 0);
  std::vector<int> writers;
  for (const Index b : bytes) {
    const auto least = std::min_element(load.begin(), load.end());
    writers.push_back(static_cast<int>(least - load.begin()));
    *least += b;
  }
  return writers;
}

}  // namespace dstrain
