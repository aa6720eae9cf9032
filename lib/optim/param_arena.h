#pragma once
// The parameters of a stage in flat memory: master weights, gradients and optimizer state, all laid out alike. Order:
// decayed parameters, then the others; within each as backward finishes (last layer first), so that buckets complete
// early. Each parameter starts at a multiple of 64 elements; gaps and padding hold zeros for ever.

#include <span>
#include <vector>

#include "lib/comm/process_group.h"
#include "lib/comm/world.h"
#include "lib/core/arena.h"
#include "lib/layers/param.h"
#include "lib/model/build.h"

namespace dstrain {

// Elements [begin, end) of the flat arrays.
struct FlatRange {
  Index begin = 0;
  Index end = 0;
  Index size() const { return end - begin; }
  friend bool operator==(const FlatRange&, const FlatRange&) = default;
};

class ParamArena {
 public:
  // Lays out the model's parameters and points them into its memory. `bucket_bytes` bounds a bucket's gradient bytes
  // (a single larger parameter is not cut). The model must outlive the arena.
  ParamArena(const StageModel& model, Device device, Index bucket_bytes);

  Index numel() const { return numel_; }       // with gaps
  Index parameters() const { return count_; }  // elements of owned pieces: their sum over a model copy is its size
  const Tensor& master() const { return master_; }
  const Tensor& gradient() const { return gradient_; }
  const Tensor& exp_avg() const { return exp_avg_; }
  const Tensor& exp_avg_sq() const { return exp_avg_sq_; }

  // Segments with one optimizer rule each: [decayed, not decayed].
  const FlatRange& segment(bool decay) const { return decay ? decayed_ : plain_; }
  // Buckets cover everything, in the order in which backward fills them.
  std::span<const FlatRange> buckets() const { return buckets_; }
  // Maximal ranges whose elements this rank owns: what it counts in norms.
  std::span<const FlatRange> owned() const { return owned_; }

  // A piece and where its rows lie: contiguous, row by row.
  struct Entry {
    const Param* param;
    const Piece* piece;
    FlatRange range;
  };
  std::span<const Entry> entries() const { return entries_; }

  // Sums the gradients: pieces that name a group over it, then every bucket over the data replicas.
  void reduce(Stream& stream, const Groups& groups) const;

  // Bytes by purpose.
  std::size_t weight_bytes() const { return weights_.bytes(); }
  std::size_t gradient_bytes() const { return gradients_.bytes(); }
  std::size_t optimizer_bytes() const { return optimizer_.bytes(); }

 private:
  void place(const std::vector<Param*>& params, Index bucket_elements);

  Index numel_ = 0, count_ = 0;
  FlatRange decayed_, plain_;
  std::vector<FlatRange> buckets_, owned_;
  std::vector<Entry> entries_;
  Buffer weights_, gradients_, optimizer_;
  Tensor master_, gradient_, exp_avg_, exp_avg_sq_;
};

}  // namespace dstrain
