#pragma once
// Pre-tokenization: cuts text into the pieces that merges never cross.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dstrain {

// The splits that are known. Each is a list of regular expressions applied one after another; a match and what lies
// between matches become pieces ("isolated" in PyPI tokenizers).
enum class Split : unsigned char { gpt2, llama3, deepseek_v3 };
const char* name_of(Split split);
// The expressions as Hugging Face's files hold them (Oniguruma's syntax).
const std::vector<std::string>& patterns_of(Split split);

// Compiled once, used by one thread at a time. Linear in the text, whatever it holds. Bytes that are not UTF-8 become
// pieces of their own, so that nothing is lost.
class Splitter {
 public:
  explicit Splitter(Split split);
  ~Splitter();
  Splitter(Splitter&&) noexcept;
  Splitter& operator=(Splitter&&) noexcept;

  // Replaces `pieces` with the pieces of `text`: views into it, in order, that together are the text.
  void split(std::string_view text, std::vector<std::string_view>& pieces);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dstrain
