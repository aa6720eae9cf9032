#include "lib/data/describe.h"

#include <algorithm>

namespace dstrain {

std::string describe_sample(TokenSources& sources, const Sampler& sampler, Index sample) {
  const Sample s = sampler.locate(sample);
  TokenSource& source = sources[s.source];
  const TokenSource::Place first = source.locate(s.begin), last = source.locate(s.begin + s.tokens - 1);
  const auto text = [&](const TokenSource::Place& from, const TokenSource::Place& to) {
    const std::string documents = from.document == to.document
                                      ? format("document {}", from.document)
                                      : format("documents {} to {}", from.document, to.document);
    return format("{}, {}, tokens {} to {} of the file", source.file(from.file).path(), documents, from.token,
                  to.token + 1);
  };
  if (first.file == last.file) return format("sample {}: {}", sample, text(first, last));
  return format("sample {}: {}, and on to {}", sample, text(first, first), text(last, last));
}

std::string describe_samples(TokenSources& sources, const Sampler& sampler, Index begin, Index end, Index most) {
  std::string all;
  for (Index i = begin; i < std::min(end, begin + most); ++i)
    all += (all.empty() ? "" : "; ") + describe_sample(sources, sampler, i);
  if (end - begin > most) all += format("; and samples {} to {}", begin + most, end - 1);
  return all;
}

}  // namespace dstrain
