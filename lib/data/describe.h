#pragma once
// A sample of training, for people.

#include <string>

#include "lib/data/sampler.h"
#include "lib/data/sources.h"

namespace dstrain {

// "sample 7: FILE, documents 3 to 5, tokens 91 to 104 of the file". Sources are used by one thread at a time.
std::string describe_sample(TokenSources& sources, const Sampler& sampler, Index sample);
// The same of [begin, end), at most `most` of them, and how many more there are.
std::string describe_samples(TokenSources& sources, const Sampler& sampler, Index begin, Index end, Index most);

}  // namespace dstrain
