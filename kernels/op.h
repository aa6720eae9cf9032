#pragma once
// launch(stream, op): the only dispatch. An op is a struct, its contract; see docs/architecture.md, "kernels".
//
//   struct Op {
//     static constexpr const char* name;                    // snake_case, as shown in ledgers and benches
//     ... tensors and scalars, shapes in comments ...
//     void validate() const;                                // shapes, dtypes; throws Error{bug} with the values
//     Cost cost() const;                                    // pure
//     std::size_t workspace(Device target) const;           // bytes, pure; optional, absent means none
//   };
//   void run(Cpu, Stream&, const Op&);                      // kernels/cpu/<op>.cpp
//   void run(Cuda, Stream&, const Op&);                     // kernels/cuda/<op>.cu
// A run() takes its workspace from stream.workspace() with an ArenaScope and needs no more than workspace() says.

#include "lib/core/build.h"
#include "lib/core/clock.h"
#include "lib/core/stream.h"
#include "lib/core/tensor.h"

namespace dstrain {

struct Cpu {};
struct Cuda {};

// Whether a gradient replaces what its tensor held or is added to it.
enum class Write : unsigned char { overwrite, accumulate };

namespace detail {

template <class Op>
void dispatch(Stream& stream, const Op& op) {
  if (stream.device() == Device::dry) {
    if constexpr (requires { op.workspace(stream.target()); }) {
      const ArenaScope scope(stream.workspace());
      stream.workspace().allocate({static_cast<Index>(op.workspace(stream.target()))}, DType::u8);
    }
    return;
  }
  if constexpr (build::cuda) {
    if (stream.device() == Device::cuda) {
      run(Cuda{}, stream, op);
      return;
    }
  }
  check(stream.device() == Device::cpu, "{}: this build has no device '{}'", Op::name, name_of(stream.device()));
  run(Cpu{}, stream, op);
}

}  // namespace detail

template <class Op>
void launch(Stream& stream, const Op& op) {
  op.validate();
  Ledger* ledger = stream.ledger();
  if (!ledger) {
    detail::dispatch(stream, op);
    return;
  }
  Ledger::Row& row = ledger->add(Op::name, op.cost());
  const double begin = ledger->timed ? system_clock().now() : 0;
  detail::dispatch(stream, op);
  if (ledger->timed) row.seconds += system_clock().now() - begin;
}

}  // namespace dstrain
