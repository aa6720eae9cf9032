#pragma once
// The splits in common use, scanned by hand: the same pieces as their regular expressions, several times faster.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace dstrain {

// gpt2: GPT-2. llama3: Llama 3 and GPT-4 (numbers in threes). qwen2: the same with single digits. deepseek_v3: three
// expressions, one after another.
enum class Split : unsigned char { gpt2, llama3, qwen2, deepseek_v3 };
inline constexpr Split kSplits[] = {Split::gpt2, Split::llama3, Split::qwen2, Split::deepseek_v3};
const char* name_of(Split split);
// The expressions as Hugging Face's files hold them (Oniguruma's syntax), applied one after another; a match and what
// lies between matches become pieces ("Isolated").
const std::vector<std::string>& patterns_of(Split split);

// Appends the ends of the pieces of text[begin, end), which is valid UTF-8; each piece starts where the one before
// ends. Linear, whatever the text holds.
void append_pieces(Split split, std::string_view text, std::size_t begin, std::size_t end,
                   std::vector<std::size_t>& ends);

}  // namespace dstrain
