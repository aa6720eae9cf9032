#pragma once
// Token files of other programs, both ways. Documents are kept: where a format has no borders of its own, the
// end-of-document id is the border.
//
// llm.c      FILE.bin: 256 i32 {magic 20240520, version 1, tokens} and u16 ids (GPT-2), or {20240801, 7, tokens} and
// u32
//            (Llama 3). Each document begins with the end-of-document id; files follow one another, cut anywhere.
// Megatron   FILE.idx: "MMIDIDX\0\0", u64 version 1, u8 type (8: u16, 4: i32), u64 sequences, u64 entries, i32
//            sizes[sequences], i64 pointers[sequences] (bytes in FILE.bin), i64 documents[entries] (the first sequence
//            of each document, and their number). FILE.bin: the ids.
//
// Little-endian. Readers hold one document and buffers, and throw Error{data} with file and place for what is cut
// short, out of range, or does not rise.

#include <string>
#include <vector>

#include "lib/data/token_file.h"

namespace dstrain {

// Adds the documents of `paths`, in order, to `out`, whose vocabulary is `info`'s.
void import_llmc(const Files& files, const std::vector<std::string>& paths, const TokenFileInfo& info,
                 TokenWriter& out);
// `paths`: FILE.idx, or FILE. A document's own end-of-document id at its end is not doubled.
void import_megatron(const Files& files, const std::vector<std::string>& paths, const TokenFileInfo& info,
                     TokenWriter& out);

// Writes PREFIX_000000.bin and on, one for each token file. Returns the paths. Throws Error{write} when one exists.
std::vector<std::string> export_llmc(const Files& files, const std::vector<std::string>& paths,
                                     const std::string& prefix);
// Writes PREFIX.bin and PREFIX.idx with all documents, each one sequence that ends with its end-of-document id.
std::vector<std::string> export_megatron(const Files& files, const std::vector<std::string>& paths,
                                         const std::string& prefix);

}  // namespace dstrain
