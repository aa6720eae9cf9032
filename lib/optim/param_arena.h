#pragma once
// The parameters of a stage in flat memory: weights, gradients and optimizer state, all laid out alike. Order:
// decayed parameters, of which those with bf16 gradients come first and those that are spread over expert ranks last
// among them, then the others, then the balancing biases of routers (and the counts of those without); within each as
// backward finishes (last layer first), so that buckets complete early. Each parameter starts at a multiple of 64
// elements; gaps and padding hold zeros for ever.

#include <array>
#include <functional>
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

// How weights and gradients are kept. Moments are float32 always.
struct WeightFormat {
  DType compute = DType::f32;   // f32: the master itself; bf16: a copy of it, rounded
  bool split = false;           // bf16 only: the master is compute and its 16 low bits (kernels/split_master.h)
  bool training = true;         // else compute is all there is: no master, gradients or moments
  bool bf16_gradients = false;  // bf16 only: those of parameters that are one product (Param::one_product)
};

// The state that a checkpoint holds of every parameter, as float32.
enum class Role : unsigned char { weight, exp_avg, exp_avg_sq };

class ParamArena {
 public:
  // Lays out the model's parameters and points them into its memory. `bucket_bytes` bounds a bucket's gradient bytes
  // (a single larger parameter is not cut). The model must outlive the arena.
  ParamArena(const StageModel& model, Device device, Index bucket_bytes, const WeightFormat& format = {});

  Index numel() const { return numel_; }       // with gaps
  Index parameters() const { return count_; }  // elements of owned pieces: their sum over a model copy is its size
  Index spread_parameters() const { return spread_count_; }  // of them, those that are spread over expert ranks
  const Tensor& master() const { return master_; }           // undefined when split or not for training
  const Tensor& compute() const { return compute_; }         // the master itself unless bf16
  const Tensor& low() const { return low_; }                 // (n) u16 when split
  // The gradients of the flat range: those that are bf16, then those that are f32; either may be undefined.
  std::array<Tensor, 2> gradients(const FlatRange& range) const;
  std::array<Tensor, 2> gradients() const { return gradients({0, numel_}); }
  // Of a range of one format, such as a bucket, an owned range or a segment.
  Tensor gradient(const FlatRange& range) const;
  const Tensor& exp_avg() const { return exp_avg_; }
  const Tensor& exp_avg_sq() const { return exp_avg_sq_; }

  // Ranges with one optimizer rule and one format of gradients each; balancing biases follow.
  struct Segment {
    FlatRange range;
    bool decay = false;
  };
  std::span<const Segment> segments() const { return segments_; }
  // Those that are spread over expert ranks; among the decayed ones.
  const FlatRange& spread() const { return spread_; }
  // Parameters of UpdateRule::balance and count, one a mixture of experts, the last layer's first: their gradients are
  // the experts' tokens of the step.
  std::span<const Param* const> counted() const { return counted_; }
  // Their weights: f32, elements [flat_biases().begin, end) of the flat arrays.
  const Tensor& biases() const { return biases_; }
  const FlatRange& flat_biases() const { return flat_biases_; }
  // Buckets cover everything, in the order in which backward fills them.
  struct Bucket {
    FlatRange range;
    std::size_t ready_layer = 0;  // complete when the backward of this index in StageModel::layers is
    bool pre_reduced = false;     // a piece in it is summed over another group first, after the whole backward
    bool spread = false;          // its replicas are Groups::expert_replica, else Groups::replica
    // Whether its reduction can run beside backward. Nothing runs beside what the first layer completes.
    bool overlaps() const { return ready_layer > 0 && !pre_reduced; }
  };
  std::span<const Bucket> buckets() const { return buckets_; }
  // Maximal ranges whose elements this rank owns: what it counts in norms.
  struct Owned {
    FlatRange range;
    bool spread = false;
  };
  std::span<const Owned> owned() const { return owned_; }

  // A piece and where its rows lie: contiguous, row by row.
  struct Entry {
    const Param* param;
    const Piece* piece;
    FlatRange range;
  };
  std::span<const Entry> entries() const { return entries_; }
  // Where a parameter's elements lie, padded rows included.
  static FlatRange range_of(const Param& param) { return {param.flat, param.flat + param.numel()}; }

  // Sums the gradients: pieces that name a group over it, then every bucket over the data replicas. `overlapped`:
  // buckets that can be have been summed already, beside backward.
  void reduce(Stream& stream, const Groups& groups, bool overlapped = false) const;

  // Sets elements of the state from host memory, the weights' bf16 copies too; returns when it is done. A split master
  // passes through the gradients' memory, some of which is then zero. Not for training: weights only.
  void write(Stream& stream, Role role, const FlatRange& range, const float* from) const;
  // Gets them; between steps only. For training only.
  void read(Stream& stream, Role role, const FlatRange& range, float* to) const;

  // Bytes by purpose.
  std::size_t weight_bytes() const { return weights_.bytes() + bias_memory_.bytes(); }
  std::size_t master_bytes() const { return masters_.bytes(); }  // what is kept beside bf16 weights
  std::size_t gradient_bytes() const { return gradients_.bytes(); }
  std::size_t optimizer_bytes() const { return optimizer_.bytes(); }

 private:
  void place(const std::vector<Param*>& params, Index bucket_bytes, bool bf16_gradients);
  // Calls `use` with pieces of the range, in order, and f32 memory for each: the gradients'.
  void pass(Stream& stream, const FlatRange& range,
            const std::function<void(const FlatRange&, const Tensor&)>& use) const;
  void write_rounded(Stream& stream, const Tensor& to, const float* from) const;
  void find_ready(const StageModel& model);

  bool training_ = true, split_ = false;
  Index numel_ = 0, count_ = 0, spread_count_ = 0;
  Index narrow_ = 0;  // gradients of the elements before it are bf16
  FlatRange spread_, flat_biases_;
  std::vector<Segment> segments_;
  std::vector<const Param*> counted_;
  std::vector<Bucket> buckets_;
  std::vector<Owned> owned_;
  std::vector<Entry> entries_;
  Tensor flat(Role role, const FlatRange& range) const;  // f32; undefined for weights that are split or bf16 alone

  Buffer weights_, masters_, gradients_, optimizer_, bias_memory_;
  Tensor biases_;
  Tensor master_, compute_, low_, narrow_gradient_, gradient_, exp_avg_, exp_avg_sq_;
};

}  // namespace dstrain
