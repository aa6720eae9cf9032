#pragma once
// Raw text: which files are documents, and their bytes.

#include <string>
#include <vector>

#include "lib/core/files.h"

namespace dstrain {

inline constexpr std::uint64_t kMaxDocument = 1ull << 30;  // bytes, after decompression

// The documents among `inputs`, files or directories (searched to 32 levels, sorted by name): .txt, .md, .rst and .gz
// of them. A file that is named must be one of these. Throws Error{data} when an input cannot be read, and when there
// is no document.
std::vector<std::string> find_documents(const Files& files, const std::vector<std::string>& inputs);

// The bytes of a document, decompressed when its name ends in .gz. Throws Error{data} with the path when it cannot be
// read, is damaged, or holds more than kMaxDocument bytes.
std::string read_document(const Files& files, const std::string& path);

}  // namespace dstrain
