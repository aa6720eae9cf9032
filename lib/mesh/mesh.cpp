#include "lib/mesh/mesh.h"

namespace dstrain {

std::string MeshSizes::to_string() const {
  return format("tensor {}, context {}, data {}, pipeline {}, expert {}", tensor, context, data, pipeline, expert);
}

const char* name_of(GroupKind kind) {
  switch (kind) {
    case GroupKind::tensor:
      return "tensor";
    case GroupKind::context:
      return "context";
    case GroupKind::pipeline:
      return "pipeline";
    case GroupKind::replica:
      return "replica";
    case GroupKind::expert:
      return "expert";
    case GroupKind::expert_replica:
      return "expert_replica";
    case GroupKind::embedding:
      return "embedding";
    case GroupKind::model:
      return "model";
    case GroupKind::kv_replica:
      return "kv_replica";
    case GroupKind::control:
      return "control";
  }
  return "?";
}

Mesh::Mesh(const MeshSizes& sizes) : sizes_(sizes) {
  Index product = 1;
  for (const int n : {sizes.tensor, sizes.context, sizes.data, sizes.pipeline}) {
    require(n >= 1, ExitCode::usage, "parallel: every size of the mesh is at least 1 ({})", sizes.to_string());
    product *= n;
    require(product <= (1 << 24), ExitCode::usage, "parallel: more than {} ranks ({})", 1 << 24, sizes.to_string());
  }
  require(sizes.expert >= 1 && sizes.data % sizes.expert == 0, ExitCode::usage,
          "parallel.expert: {} does not divide parallel.data: {}", sizes.expert, sizes.data);
}

Coordinates Mesh::coordinates(int rank) const {
  check(rank >= 0 && rank < ranks(), "rank {} of a mesh of {}", rank, ranks());
  Coordinates at;
  at.tensor = rank % sizes_.tensor;
  rank /= sizes_.tensor;
  at.context = rank % sizes_.context;
  rank /= sizes_.context;
  at.data = rank % sizes_.data;
  at.pipeline = rank / sizes_.data;
  return at;
}

int Mesh::rank_of(const Coordinates& at) const {
  return at.tensor + sizes_.tensor * (at.context + sizes_.context * (at.data + sizes_.data * at.pipeline));
}

namespace {

struct Range {
  int begin, end;
  int step = 1;
};

}  // namespace

std::vector<int> Mesh::members(GroupKind kind, int rank) const {
  const Coordinates at = coordinates(rank);
  Range t{at.tensor, at.tensor + 1}, c{at.context, at.context + 1}, d{at.data, at.data + 1},
      p{at.pipeline, at.pipeline + 1};
  const Range all_t{0, sizes_.tensor}, all_c{0, sizes_.context}, all_d{0, sizes_.data}, all_p{0, sizes_.pipeline};
  switch (kind) {
    case GroupKind::tensor:
      t = all_t;
      break;
    case GroupKind::context:
      c = all_c;
      break;
    case GroupKind::pipeline:
      p = all_p;
      break;
    case GroupKind::replica:
      c = all_c, d = all_d;
      break;
    case GroupKind::expert: {
      const int block = at.data / sizes_.expert * sizes_.expert;
      d = {block, block + sizes_.expert};
      break;
    }
    case GroupKind::expert_replica:
      c = all_c;
      d = {at.data % sizes_.expert, sizes_.data, sizes_.expert};
      break;
    case GroupKind::embedding: {
      const int last = sizes_.pipeline - 1;
      if (at.pipeline != 0 && at.pipeline != last) return {};
      p = {0, sizes_.pipeline, last > 0 ? last : 1};
      break;
    }
    case GroupKind::model:
      t = all_t, p = all_p;
      break;
    case GroupKind::kv_replica:
      check(false, "kv_replica depends on the key-value heads: call kv_replica()");
      break;
    case GroupKind::control:
      t = all_t, c = all_c, d = all_d, p = all_p;
      break;
  }
  std::vector<int> ranks;
  for (int i = p.begin; i < p.end; i += p.step)
    for (int j = d.begin; j < d.end; j += d.step)
      for (int k = c.begin; k < c.end; k += c.step)
        for (int l = t.begin; l < t.end; l += t.step) ranks.push_back(rank_of({l, k, j, i}));
  return ranks;
}

std::vector<int> Mesh::kv_replica(int rank, Index kv_heads) const {
  const int tensor = sizes_.tensor;
  check(kv_heads >= 1 && (kv_heads % tensor == 0 || tensor % kv_heads == 0), "{} key-value heads over tensor {}",
        kv_heads, tensor);
  const int sharing = kv_heads >= tensor ? 1 : tensor / static_cast<int>(kv_heads);
  Coordinates at = coordinates(rank);
  const int first = at.tensor / sharing * sharing;
  std::vector<int> ranks;
  for (at.tensor = first; at.tensor < first + sharing; ++at.tensor) ranks.push_back(rank_of(at));
  return ranks;
}

std::vector<int> members_by_name(const Mesh& mesh, const std::string& name, int rank) {
  for (int k = 0; k < kGroupKinds; ++k) {
    const auto kind = static_cast<GroupKind>(k);
    if (name == name_of(kind)) return mesh.members(kind == GroupKind::kv_replica ? GroupKind::tensor : kind, rank);
  }
  return {};
}

}  // namespace dstrain
