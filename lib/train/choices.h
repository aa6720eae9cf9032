#pragma once
// Multiple-choice questions, scored as EleutherAI's lm-evaluation-harness does: a choice's score is the log-likelihood
// of its tokens after the context's.

#include <string>
#include <vector>

#include "lib/comm/agree.h"
#include "lib/tokenizer/tokenizer.h"
#include "lib/train/engine.h"

namespace dstrain {

// Context and choice as ids; targets are ids[first_target ..].
struct ScoredSequence {
  std::vector<std::int32_t> ids;
  std::size_t first_target = 0;
};

struct Question {
  std::string place;  // "file.jsonl:3"
  std::vector<ScoredSequence> choices;
  std::vector<std::size_t> bytes;  // of each choice's text
  std::size_t answer = 0;
};

// Reads a JSONL file of {"context": text, "choices": [texts], "answer": index from 0}. A choice follows its context
// after `delimiter`, which its bytes leave out; white space that ends a context goes over to the choice; an empty
// context is an end of document. Throws Error{data} with file and line for anything else, for a choice without tokens
// of its own, and for a sequence of more than `positions` tokens to predict from.
std::vector<Question> read_questions(const Files& files, const std::string& path, const Tokenizer& tokenizer,
                                     const std::string& delimiter, Index positions);

// The longest input of any question.
Index longest_input(const std::vector<Question>& questions);

// The log-likelihood of every choice of every question, in nats, on all ranks. The engine is for evaluation, of
// micro_batch_size inputs of up to sequence_length tokens at once and one micro-batch a step. Collective.
std::vector<std::vector<double>> log_likelihoods(Engine& engine, const std::vector<Question>& questions);

// The share of questions whose answer has the largest score, the first of equals.
struct Accuracy {
  double sum = 0;         // by log-likelihood: the harness's acc
  double normalised = 0;  // by log-likelihood over bytes: its acc_bytes, and acc_norm where text is ASCII
};
Accuracy accuracy(const std::vector<Question>& questions, const std::vector<std::vector<double>>& scores);

}  // namespace dstrain
