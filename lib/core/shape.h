#pragma once
// A list of at most six dimensions, held by value.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "lib/core/errors.h"

namespace dstrain {

using Index = std::int64_t;

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<Index> dims) {
    for (Index d : dims) push_back(d);
  }
  explicit Shape(const std::vector<Index>& dims) {
    for (Index d : dims) push_back(d);
  }

  int rank() const { return rank_; }
  Index operator[](int i) const { return dims_[static_cast<std::size_t>(i)]; }
  Index& operator[](int i) { return dims_[static_cast<std::size_t>(i)]; }
  const Index* begin() const { return dims_.data(); }
  const Index* end() const { return dims_.data() + rank_; }
  void push_back(Index d) {
    check(rank_ < kMaxRank, "a shape has at most {} dimensions", kMaxRank);
    dims_[static_cast<std::size_t>(rank_++)] = d;
  }
  // Product of the dimensions; 1 for rank 0.
  Index numel() const {
    Index n = 1;
    for (Index d : *this) n *= d;
    return n;
  }
  std::vector<Index> to_vector() const { return {begin(), end()}; }
  std::string to_string() const;  // "(2, 3)"
  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }

 private:
  std::array<Index, kMaxRank> dims_{};
  int rank_ = 0;
};

}  // namespace dstrain
