#pragma once

#include <string>
#include <vector>

#include "lib/tokenizer/bpe_trainer.h"

namespace dstrain {

inline std::string small_tokenizer(const std::string& normalizer, const std::string& pre, const std::string& decoder,
                                   const std::string& model) {
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)"
         R"({"id":0,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},)"
         R"({"id":1,"content":"the","single_word":true,"lstrip":true,"rstrip":true,"normalized":true,"special":false}],)"
         R"("normalizer":)" +
         normalizer + R"(,"pre_tokenizer":)" + pre +
         R"(,"post_processor":{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}},)"
         R"({"SpecialToken":{"id":"</s>","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}}],)"
         R"("special_tokens":{"</s>":{"id":"</s>","ids":[0],"tokens":["</s>"]}}},"decoder":)" +
         decoder + R"(,"model":)" + model + "}";
}

// A tokenizer.json of each model: byte-level BPE, BPE with byte fallback, WordPiece, Unigram.
inline std::vector<std::string> small_tokenizers() {
  BpeTrainer trainer(Split::deepseek_v3);
  trainer.add("the theme of the thesis is theirs, 1234 times \xe6\x97\xa5\xe6\x9c\xac");
  const std::string words =
      R"({"</s>":0,"the":1,"[UNK]":2,"a":3,"b":4,"##b":5,"c":6,"ab":7,"<0xE6>":8,"<0x97>":9,"<0xA5>":10})";
  return {
      trainer.train(280).to_json(),
      small_tokenizer(
          R"({"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Lowercase"},{"type":"StripAccents"},)"
          R"({"type":"Replace","pattern":{"Regex":"\\s+|[^a-z\\p{Han}]"},"content":" "},{"type":"Strip","strip_left":true,"strip_right":true}]})",
          R"x({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:a)|\\w{2,}?(?!b)"},)x"
          R"("behavior":"MergedWithNext","invert":false},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Contiguous"}]})",
          R"({"type":"BPEDecoder","suffix":"</w>"})",
          R"({"type":"BPE","dropout":null,"unk_token":"[UNK]","continuing_subword_prefix":null,"end_of_word_suffix":null,)"
          R"("fuse_unk":true,"byte_fallback":true,"ignore_merges":false,"vocab":)" +
              words + R"(,"merges":[["a","b"]]})"),
      small_tokenizer(
          R"({"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true})",
          R"({"type":"BertPreTokenizer"})", R"({"type":"WordPiece","prefix":"##","cleanup":true})",
          R"({"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":20,"vocab":)" +
              words + "}"),
      small_tokenizer(
          R"({"type":"Sequence","normalizers":[{"type":"Nmt"},{"type":"Prepend","prepend":"_"},{"type":"Precompiled","precompiled_charsmap":"AAQA)" +
              std::string(1364, 'A') + R"(AAA="}]})",
          R"({"type":"Metaspace","replacement":"_","prepend_scheme":"first","split":true})",
          R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"_"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},)"
          R"({"type":"Strip","content":" ","start":1,"stop":1}]})",
          R"({"type":"Unigram","unk_id":2,"vocab":[["</s>",0.0],["the",-1.0],["<unk>",0.0],["_",-2.0],["_a",-1.5],["b",-2.5],["ab",-2.25]],"byte_fallback":true})"),
  };
}

}  // namespace dstrain
