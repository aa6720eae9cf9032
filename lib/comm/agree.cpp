#include "lib/comm/agree.h"

#include <optional>

#include "lib/core/to_error.h"

namespace dstrain {

namespace {

Tensor bytes_of(std::string& text) {
  return Tensor(text.data(), DType::u8, Device::cpu, {static_cast<Index>(text.size())});
}

}  // namespace

std::vector<Index> Agreement::all_gather(Index value) {
  std::vector<Index> all(static_cast<std::size_t>(size()));
  group_.all_gather(stream_, Tensor(all.data(), DType::i64, Device::cpu, {size()}),
                    Tensor(&value, DType::i64, Device::cpu, {1}));
  return all;
}

void Agreement::together(const std::function<void()>& work) {
  std::optional<Error> mine;
  try {
    work();
  } catch (const std::exception& e) {
    mine = to_error(e);
  }
  const std::vector<Index> codes = all_gather(mine ? static_cast<Index>(mine->code()) : 0);
  for (int r = 0; r < size(); ++r) {
    const Index code = codes[static_cast<std::size_t>(r)];
    if (code == 0) continue;
    std::string text = broadcast(r == rank() ? std::string(mine->what()) : std::string(), r);
    if (size() > 1) text = format("rank {}: {}", r, text);
    throw Error(static_cast<ExitCode>(code), text, true);
  }
}

Index Agreement::sum(Index value) {
  group_.all_reduce(stream_, Tensor(&value, DType::i64, Device::cpu, {1}));
  return value;
}

double Agreement::sum(double value) {
  group_.all_reduce(stream_, Tensor(&value, DType::f64, Device::cpu, {1}));
  return value;
}

std::string Agreement::broadcast(std::string text, int root) {
  Index length = static_cast<Index>(text.size());
  group_.broadcast(stream_, Tensor(&length, DType::i64, Device::cpu, {1}), root);
  text.resize(static_cast<std::size_t>(length));
  group_.broadcast(stream_, bytes_of(text), root);
  return text;
}

std::vector<std::string> Agreement::gather(const std::string& text) {
  const std::vector<Index> lengths = all_gather(static_cast<Index>(text.size()));
  std::string own = text;
  std::vector<std::string> all;
  std::vector<Send> sends = {{bytes_of(own), 0}};
  std::vector<Receive> receives;
  if (rank() == 0) {
    for (const Index n : lengths) all.emplace_back(static_cast<std::size_t>(n), '\0');
    for (int r = 0; r < size(); ++r) receives.push_back({bytes_of(all[static_cast<std::size_t>(r)]), r});
  }
  group_.exchange(stream_, sends, receives);
  return all;
}

}  // namespace dstrain
