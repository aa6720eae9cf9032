#pragma once
// Mesh: which rank computes what. Pure arithmetic over sizes; the groups are lists of world ranks.
//
//   rank = tensor + T * (context + C * (data + D * pipeline))         with T, C, D the sizes; tensor is innermost
//
// `expert` is not a factor of the ranks: experts are spread over blocks of `expert` neighbouring data coordinates and
// replicated over the data / expert blocks and over context.

#include <string>
#include <vector>

#include "lib/core/shape.h"

namespace dstrain {

struct MeshSizes {
  int tensor = 1;
  int context = 1;
  int data = 1;
  int pipeline = 1;
  int expert = 1;  // divides data

  int ranks() const { return tensor * context * data * pipeline; }
  std::string to_string() const;  // "tensor 2, context 1, data 2, pipeline 1, expert 1"
  friend bool operator==(const MeshSizes&, const MeshSizes&) = default;
};

struct Coordinates {
  int tensor = 0;
  int context = 0;
  int data = 0;
  int pipeline = 0;

  friend bool operator==(const Coordinates&, const Coordinates&) = default;
};

enum class GroupKind : unsigned char {
  tensor,          // shards of one layer
  context,         // shards of one sequence
  pipeline,        // stages of one model copy, first stage first
  replica,         // data * context: reduces dense gradients
  expert,          // holders of different experts; all-to-all
  expert_replica,  // holders of the same experts: reduces their gradients
  embedding,       // first and last stage: tied copies. Empty on the stages between
  model,           // tensor * pipeline: one copy of the model, for norms
  kv_replica,      // tensor ranks that share a key-value head; see Mesh::kv_replica
  control,         // all ranks: host messages
};
constexpr int kGroupKinds = 10;
const char* name_of(GroupKind kind);

class Mesh {
 public:
  // Throws Error{usage} unless every size is at least 1, the product is a valid rank count and expert divides data.
  explicit Mesh(const MeshSizes& sizes);

  const MeshSizes& sizes() const { return sizes_; }
  int ranks() const { return sizes_.ranks(); }
  Coordinates coordinates(int rank) const;
  int rank_of(const Coordinates& at) const;

  // World ranks of the group of `kind` that `rank` is in, ascending; every member gets the same list. Empty when the
  // rank is in no such group. For kv_replica call the function below.
  std::vector<int> members(GroupKind kind, int rank) const;
  // Tensor ranks that hold the same key-value heads. REQUIRES: tensor divides kv_heads (then the rank alone) or
  // kv_heads divides tensor (then tensor / kv_heads neighbours).
  std::vector<int> kv_replica(int rank, Index kv_heads) const;

 private:
  MeshSizes sizes_;
};

// The same by the group's name, for messages: kv_replica counts as tensor; empty for a name that is no group's.
std::vector<int> members_by_name(const Mesh& mesh, const std::string& name, int rank);

}  // namespace dstrain
