#pragma once
// launch(stream, op): the only dispatch. An op is a struct, its contract; see docs/architecture.md, "kernels".
//
//   struct Op {
//     static constexpr const char* name;                    // snake_case, as shown in ledgers and benches
//     ... tensors and scalars, shapes in comments ...
//     void validate() const;                                // shapes, dtypes; throws Error{bug} with the values
//     Cost cost() const;                                    // pure
//     std::size_t workspace(Device target) const;           // bytes, pure; optional, absent means none
//     std::array<Tensor, N> outputs() const;                // what it writes; undefined ones are skipped
//   };
//   void run(Cpu, Stream&, const Op&);                      // kernels/cpu/<op>.cpp
//   void run(Cuda, Stream&, const Op&);                     // kernels/cuda/<op>.cu
// A run() takes its workspace from stream.workspace() with an ArenaScope and needs no more than workspace() says.

#include <array>

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
inline constexpr PackedText op_name{std::string_view(Op::name)};

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
  if (Whereabouts* const here = stream.whereabouts()) here->launched(detail::op_name<Op>);
  Ledger* const ledger = stream.ledger();
  OpObserver* const observer = stream.device() == Device::dry ? nullptr : stream.observer();
  if (!ledger && !observer) {
    detail::dispatch(stream, op);
    return;
  }
  const Cost cost = op.cost();
  if (observer) observer->before(stream, Op::name, cost);
  if (ledger) {
    Ledger::Row& row = ledger->add(Op::name, cost);
    const bool timed = ledger->timed && stream.device() == Device::cpu;  // enqueueing is not running
    const double begin = timed ? system_clock().now() : 0;
    detail::dispatch(stream, op);
    if (timed) row.seconds += system_clock().now() - begin;
  } else {
    detail::dispatch(stream, op);
  }
  if (observer) {
    const auto outputs = op.outputs();
    observer->after(stream, Op::name, outputs);
  }
}

}  // namespace dstrain
