#pragma once
// What the ops of a run cost, counted as they are launched. The plan, MFU and `bench` all read this one ledger.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace dstrain {

// Cost of one op. FLOPs count matrix work only (2 per multiply-add); `flops` counts causal attention at half,
// `flops_full` in full. Both are printed; MFU is quoted causal.
struct Cost {
  double flops = 0;
  double flops_full = 0;
  double bytes = 0;  // read and written, each operand once

  Cost& operator+=(const Cost& o) {
    flops += o.flops;
    flops_full += o.flops_full;
    bytes += o.bytes;
    return *this;
  }
};

struct Ledger {
  struct Row {
    std::int64_t launches = 0;
    Cost cost;
    double seconds = 0;  // if timed
  };
  bool timed = false;                           // whether launch() measures each op's time; host streams only
  std::map<std::string, Row> ops;               // by op name
  std::map<std::string, double> communication;  // bytes sent by this rank, by group name
  double communication_seconds = 0;             // in transfers, waiting for peers included; if timed

  Row& add(const char* op, const Cost& cost) {
    Row& row = ops[op];
    ++row.launches;
    row.cost += cost;
    return row;
  }
  Cost total() const {
    Cost sum;
    for (const auto& [name, row] : ops) sum += row.cost;
    return sum;
  }
};

}  // namespace dstrain
