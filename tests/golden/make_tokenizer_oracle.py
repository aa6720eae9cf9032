"""Writes tokenizer_corpus.txt and tokenizer_oracle.json, with PyPI tokenizers (0.23.3 made the stored ones).

python3 make_tokenizer_oracle.py DIRECTORY
"""
import json
import random
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3 = [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+".replace('\\"', '"')]


def splits(patterns):
    parts = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(parts + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def corpus():
    r = random.Random(7)
    syllables = ["ka", "lo", "mer", "ti", "sun", "e", "ing", "ra", "tion", "pre", "s", "un", "al", "ed", "th"]
    words = ["".join(r.choices(syllables, k=r.randint(1, 4))) for _ in range(400)]
    odd = ["don't", "we'll", "I'M", "it's", "naïve", "Ωmega", "日本語", "カタカナ", "漢字と仮名", "русский", "🙂🙂", "é́", "x_y", "a->b",
           "0x1F", "3.14159", "1234567", "٣٤٥", "½", "foo(bar);", "C++", "#define", "\u00a0", "\u3000", "\u200b", "ﬁ", "\u180e"]
    lines = []
    for _ in range(420):
        kind = r.random()
        if kind < 0.15:
            lines.append(r.choice("=-~*#. ") * r.randint(2, 40))
        elif kind < 0.3:
            lines.append(" " * r.randint(1, 17) + "\t" * r.randint(0, 3) + r.choice(words))
        else:
            picked = [words[min(399, int(r.paretovariate(0.7)))] if r.random() < 0.93 else r.choice(odd)
                      for _ in range(r.randint(1, 14))]
            lines.append(r.choice([" ", " ", " ", "  ", ", "]).join(picked) + r.choice(["", ".", "!", "\r", " "]))
        if r.random() < 0.1:
            lines.append("")
    return "\n".join(lines) + "\n"


def main(directory):
    text = corpus()
    with open(directory + "/tokenizer_corpus.txt", "w", newline="", encoding="utf-8") as f:
        f.write(text)
    oracle = {}
    for name, pre in [("gpt2", GPT2), ("llama3", splits(LLAMA3)), ("deepseek_v3", splits(DEEPSEEK_V3))]:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator([text], trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False))
        model = json.loads(tokenizer.to_str())["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        oracle[name] = {"merges": merges, "ids": tokenizer.encode(text[:6000]).ids}
    with open(directory + "/tokenizer_oracle.json", "w", encoding="utf-8") as f:
        json.dump(oracle, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


main(sys.argv[1])
