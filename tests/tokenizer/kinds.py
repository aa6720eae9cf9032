"""One tokenizer of every kind, made small from the corpus itself, the same on every machine: make(corpus) -> {name: Kind}."""
import collections
import io
import json
import math

import corpus as corpus_module
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
END = AddedToken("<|endoftext|>", normalized=False, special=True)

# byte_level: any bytes come back. exact: decoding gives the text back (no normalizer, no prefix).
Kind = collections.namedtuple("Kind", "tokenizer byte_level exact")


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def sequence(*parts):
    return pre_tokenizers.Sequence(list(parts))


def byte_level(pre, texts, vocab_size=3000, specials=(END,), **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(specials), show_progress=False,
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def without_regex():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def pieces(texts, normalizer, pre):
    """What `pre` cuts, counted."""
    count = collections.Counter()
    for text in texts:
        count.update(p for p, _ in pre.pre_tokenize_str(normalizer.normalize_str(text) if normalizer else text))
    return count


def substrings(count, longest):
    """Frequent substrings and all characters, most frequent first."""
    parts = collections.Counter()
    for piece, n in count.items():
        for i in range(len(piece)):
            for j in range(i + 1, min(len(piece), i + longest) + 1):
                parts[(i == 0, piece[i:j])] += n
    return parts


def word_piece(texts, normalizer, size, prefix="##"):
    parts = substrings(pieces(texts, normalizer, pre_tokenizers.BertPreTokenizer()), 8)
    rows = sorted(((-n, prefix * (not first) + s) for (first, s), n in parts.items() if n > 2 or len(s) == 1))
    vocab = {}
    for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [s for _, s in rows[:size]]:
        vocab.setdefault(token, len(vocab))
    t = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=60, continuing_subword_prefix=prefix))
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece(prefix=prefix)
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]])
    t.add_special_tokens([AddedToken("[MASK]", normalized=False, special=True, lstrip=True)])
    t.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])])
    return t


def unigram(texts, normalizer, pre, size, byte_fallback=False):
    parts = substrings(pieces(texts, normalizer, pre), 8)
    total = sum(parts.values())
    joined = collections.Counter()
    for (_, s), n in parts.items():
        joined[s] += n
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    if byte_fallback:
        vocab += [(f"<0x{b:02X}>", 0.0) for b in range(256)]
    # Rounded: equal scores make ties.
    vocab += [(s, round(math.log(n / total), 1)) for s, n in sorted(joined.items(), key=lambda x: (-x[1], x[0]))[:size] if s not in dict(vocab)]
    t = Tokenizer(models.Unigram(vocab, 2, byte_fallback))
    t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.Metaspace()
    t.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<pad>", special=True), AddedToken("<unk>", special=True)])
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return t


def characters_map():
    """SentencePiece's own nmt_nfkc map, out of a model that it trains."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["abcdefgh ijkl"] * 20), model_writer=model, vocab_size=16,
                                             normalization_rule_name="nmt_nfkc", minloglevel=2)

    def fields(data):
        at = 0
        while at < len(data):
            def varint():
                nonlocal at
                value = shift = 0
                while True:
                    byte = data[at]
                    at += 1
                    value |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        return value
            key = varint()
            if key & 7 == 0:
                yield key >> 3, varint()
                continue
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            yield key >> 3, data[at:at + size]
            at += size

    spec = next(v for k, v in fields(model.getvalue()) if k == 3)
    return next(v for k, v in fields(spec) if k == 2)


def fallback_bpe(texts, **model):
    """Llama 2's model: characters, merges of characters, bytes for the rest."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2500, limit_alphabet=700, show_progress=False,
                                                     special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]))
    data = json.loads(t.to_str())
    data["model"].update(dict(byte_fallback=True, fuse_unk=True), **model)
    data["pre_tokenizer"] = None
    data["added_tokens"] = [a for a in data["added_tokens"] if a["content"] in ("<unk>", "<s>", "</s>")]
    t = Tokenizer.from_str(json.dumps(data))
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return t


def edited(t, **changes):
    """The tokenizer with other values in its JSON: edited(t, model={...})."""
    data = json.loads(t.to_str())
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(data[key], dict) and "type" not in value:
            data[key].update(value)
        else:
            data[key] = value
    return Tokenizer.from_str(json.dumps(data))


def make(lines):
    """`lines`: texts to learn from."""
    texts = lines[:6000]
    kinds = {}

    def add(name, tokenizer, byte_level=False, exact=False):
        kinds[name] = Kind(tokenizer, byte_level, exact)

    gpt2 = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), texts)
    add("gpt2", gpt2, True, True)
    data = json.loads(gpt2.to_str())
    data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
    add("gpt2_empty_affixes", edited(gpt2, model=dict(continuing_subword_prefix="", end_of_word_suffix="", unk_token="")), True, True)
    add("gpt2_merges_as_text", Tokenizer.from_str(json.dumps(data)), True, True)
    t = edited(gpt2, pre_tokenizer=json.loads(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), texts[:50]).to_str())["pre_tokenizer"])
    t.post_processor = processors.RobertaProcessing(("<|endoftext|>", 0), ("<|endoftext|>", 0))
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    t.add_tokens([AddedToken("New York", single_word=True), AddedToken("  ", normalized=False, rstrip=True)])
    add("roberta", t, True)
    t = byte_level(sequence(split(LLAMA3), without_regex()), texts, specials=[END, AddedToken("<|im_start|>", normalized=False, special=True)])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|>:1 $B:1", special_tokens=[("<|endoftext|>", 0)])])
    add("llama3", edited(t, model=dict(ignore_merges=True)), True, True)
    t = byte_level(sequence(split(QWEN2), without_regex()), texts)
    t.normalizer = normalizers.NFC()
    add("qwen2", t, True)
    t = byte_level(sequence(*(split(p) for p in DEEPSEEK), without_regex()), texts)
    t.add_tokens([AddedToken("tokenword"), AddedToken("the", single_word=True), AddedToken("##ing", rstrip=True, lstrip=True)])
    add("deepseek_v3", t, True)
    add("o200k", byte_level(sequence(split(O200K), without_regex()), texts), True, True)
    add("byte_level_no_split", byte_level(without_regex(), [w for x in texts for w in x.split(" ")], 1500), True, True)
    # Some bytes without a token: characters are lost, or unknown.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:180]
    t = Tokenizer(models.BPE({"<|endoftext|>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.add_special_tokens([END])
    add("byte_level_with_gaps", t, True)

    add("llama2", fallback_bpe(texts))
    add("llama2_no_fuse", fallback_bpe(texts, byte_fallback=False, fuse_unk=False))
    t = edited(fallback_bpe(texts), normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
               pre_tokenizer={"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False})
    add("gemma", t)
    t = edited(fallback_bpe(texts), normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
               model=dict(byte_fallback=False))
    t.decoder = decoders.Metaspace()
    add("metaspace_first", t)
    for scheme in ("always", "first", "never"):
        t = Tokenizer(models.BPE(unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        t.train_from_iterator(texts[:1500], trainers.BpeTrainer(vocab_size=900, limit_alphabet=300, show_progress=False, special_tokens=["<unk>", "</s>"]))
        t.decoder = decoders.Metaspace(prepend_scheme=scheme)
        t.normalizer = normalizers.Strip() if scheme == "first" else None
        t.add_tokens([AddedToken("the"), AddedToken("\n", normalized=False)])
        add("metaspace_split_" + scheme, t)

    t = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=True))
    t.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", special_tokens=["<unk>", "</s>"], show_progress=False,
                                                     limit_alphabet=900))
    t.decoder = decoders.BPEDecoder(suffix="</w>")
    add("bpe_suffix", t)
    t = Tokenizer(models.BPE(continuing_subword_prefix="##", unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, continuing_subword_prefix="##", special_tokens=["<unk>", "</s>"],
                                                     show_progress=False, limit_alphabet=900))
    add("bpe_prefix", t)

    add("bert_uncased", word_piece(texts, normalizers.BertNormalizer(), 4000))
    add("bert_cased", word_piece(texts, normalizers.BertNormalizer(lowercase=False, strip_accents=False, clean_text=False), 4000))
    add("word_piece_no_prefix", word_piece(texts, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), 1500, prefix=""))

    charsmap = normalizers.Precompiled(characters_map())
    meta = pre_tokenizers.Metaspace
    add("t5", unigram(texts, charsmap, sequence(pre_tokenizers.WhitespaceSplit(), meta()), 3000))
    t = unigram(texts, normalizers.Sequence([charsmap, normalizers.Replace(Regex(" {2,}"), " ")]), meta(), 3000)
    t.add_special_tokens([AddedToken("<mask>", special=True, lstrip=True)])
    t.add_tokens([AddedToken("New York"), AddedToken("tokenword", single_word=True)])
    add("xlm_roberta", t)
    t = unigram(texts, normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                             normalizers.Nmt()]), meta(), 3000)
    add("albert", t)
    add("unigram_bytes", unigram(texts, None, meta(), 2000, byte_fallback=True))
    t = unigram(texts[:2000], None, meta(), 600, byte_fallback=True)
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    add("unigram_no_split", t)

    normal_forms = dict(nfc=normalizers.NFC(), nfd=normalizers.NFD(), nfkc=normalizers.NFKC(), nfkd=normalizers.NFKD())
    for name, form in normal_forms.items():
        t = edited(gpt2)
        t.normalizer = normalizers.Sequence([form, normalizers.Lowercase()] if name != "nfc" else [normalizers.Lowercase(), form])
        add(name, t, True)
    t = edited(gpt2)
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Strip(left=True, right=False),
                                         normalizers.Replace(Regex(r"\p{Nd}+|\w{9,}"), "0"), normalizers.Prepend("> "),
                                         normalizers.Replace("the", "THE")])
    t.add_tokens([AddedToken("New York", normalized=True), AddedToken("Tokenword", normalized=True)])
    add("normalizers", t, True)

    behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    patterns = [r"\d+", r"\s", r"[aeiou]{1,2}|\p{Lu}", r"\b", r"x*", r"(?i:the)|\p{Han}", r"^.|\h+$", r"\W"]
    n = 0
    for behavior in behaviors:
        for invert in (False, True):
            pre = sequence(split(patterns[n % len(patterns)], behavior, invert), pre_tokenizers.Digits(individual_digits=invert),
                           pre_tokenizers.Punctuation(behaviors[(n + 2) % 5]),
                           pre_tokenizers.Split(" t" if n % 2 else "e", behaviors[(n + 1) % 5], not invert), without_regex())
            t = edited(gpt2)
            t.pre_tokenizer = pre
            add(f"split_{behavior}_{'inverted' if invert else 'plain'}", t, True)
            n += 1
    t = edited(gpt2)
    t.pre_tokenizer = sequence(pre_tokenizers.ByteLevel(add_prefix_space=True), split(r"Ġ", "merged_with_next"))
    add("split_after_byte_level", t)
    return kinds
