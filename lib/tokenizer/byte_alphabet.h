#pragma once
// GPT-2's byte alphabet: printable bytes are spelled as themselves, the others as U+0100 and on.

#include <cstdint>
#include <string>
#include <string_view>

namespace dstrain {

// Appends the characters that spell `bytes`.
void spell_bytes(std::string_view bytes, std::string& out);
std::string spell_bytes(std::string_view bytes);
// The byte that a character spells; -1 when it spells none.
int byte_of(std::uint32_t code);
// Replaces `bytes` with what `text`, valid UTF-8, spells; false when a character spells no byte.
bool unspell_bytes(std::string_view text, std::string& bytes);

}  // namespace dstrain
