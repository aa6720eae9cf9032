#pragma once
// Text to token files, on the threads of any number of ranks, with the same bytes whatever their number.
//
// Every rank reads the inputs and cuts them into the same units of about 256 KiB; unit u is encoded by rank u mod
// ranks, on any of its threads; rank 0 writes the results in order. Reading the next units, encoding these and writing
// the last go on together. Memory of a rank: three windows of 16
// MiB of text, each with one more document at most, and their ids.

#include <functional>

#include "lib/comm/process_group.h"
#include "lib/data/tokenize_state.h"
#include "lib/tokenizer/tokenizer.h"

namespace dstrain {

struct TokenizeProgress {
  std::uint64_t consumed = 0, total = 0;  // stored bytes of the inputs
  Index documents = 0, tokens = 0;        // so far, finished files included
};

struct TokenizeResult {
  TokenizeStatistics statistics;
  Index resumed = 0;      // documents that finished files held already
  bool complete = false;  // all was there before
};

// Collective over `group`; `report` is called now and then, on rank 0. The result is rank 0's. Throws on every rank the
// error of the first document that cannot be read or is not valid, and what TokenizeState and TokenWriter throw.
// A document's side is decided by its content alone, so that it is the same in every run.
TokenizeResult tokenize(const Files& files, const Tokenizer& tokenizer, const TokenizeOptions& options, int threads,
                        ProcessGroup& group, const std::function<void(const TokenizeProgress&)>& report);

// Whether a document of this text is held out.
bool held_out(std::string_view text, double fraction);

}  // namespace dstrain
