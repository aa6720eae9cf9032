"""Writes lib/tokenizer/unicode_tables.cpp: the properties of characters as PyPI tokenizers 0.23.3 sees them.

build/deps/venv/bin/python tests/tokenizer/make_unicode_tables.py > lib/tokenizer/unicode_tables.cpp && scripts/format

tokenizers mixes Unicode versions: its categories are of Unicode 8, its normal forms of 9, its regular expressions of 16.
Each table is what the library itself answers for every code point, so that ids cannot differ by a new character. The
`added` tables hold what its regular expressions know beyond PCRE2 10.42 (Unicode 14); utf8proc 2.8 gives the rest.
"""
import ctypes
import ctypes.util

from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = ["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm",
              "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cf"]
SCRIPTS = ["Arabic", "Bengali", "Cyrillic", "Devanagari", "Greek", "Han", "Hangul", "Hebrew", "Hiragana", "Katakana", "Latin",
           "Tamil", "Thai"]


def alone(pre, between):
    """The characters that `pre` cuts out of text made of `between`."""
    found = set()
    for i in range(0, len(CODES), 4096):
        text = "".join(between + chr(c) for c in CODES[i:i + 4096]) + between
        for piece, (begin, end) in pre.pre_tokenize_str(text):
            if end - begin == 1 and begin % 2 == 1:
                found.add(ord(piece))
    return found


def regex(pattern):
    return alone(pre_tokenizers.Split(Regex(pattern), "isolated"), "\n" if pattern != r"\s" else "a")


def vanishing(normalizer):
    return {c for c in CODES if normalizer.normalize_str("a" + chr(c) + "b") == "ab"}


def ranges(codes):
    out = []
    for c in sorted(codes):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


class Pcre2:
    """Which characters PCRE2 gives a property."""

    def __init__(self):
        self.lib = ctypes.CDLL(ctypes.util.find_library("pcre2-8"))
        self.lib.pcre2_compile_8.restype = ctypes.c_void_p
        self.lib.pcre2_match_data_create_8.restype = ctypes.c_void_p

    def matches(self, pattern):
        lib, error, at = self.lib, ctypes.c_int(), ctypes.c_size_t()
        raw = pattern.encode()
        code = ctypes.c_void_p(lib.pcre2_compile_8(raw, ctypes.c_size_t(len(raw)), 0x00080000, ctypes.byref(error),
                                                   ctypes.byref(at), None))
        assert code, pattern
        data = ctypes.c_void_p(lib.pcre2_match_data_create_8(1, None))
        found = set()
        for c in CODES:
            s = chr(c).encode()
            if lib.pcre2_match_8(code, s, ctypes.c_size_t(len(s)), ctypes.c_size_t(0), 0, data, None) > 0:
                found.add(c)
        return found


def table(name, codes, what):
    print(f"\n// {what}")
    print(f"const CodeTable {name}{{{{")
    line = "   "
    for a, b in ranges(codes):
        item = f" {{{a:#x}, {b:#x}}},"
        if len(line) + len(item) > 120:
            print(line)
            line = "   "
        line += item
    print(line)
    print("}};")


def main():
    bert = lambda **k: normalizers.BertNormalizer(**dict(dict(clean_text=False, handle_chinese_chars=False, strip_accents=False,
                                                              lowercase=False), **k))
    print("// Made by tests/tokenizer/make_unicode_tables.py from PyPI tokenizers 0.23.3; do not edit.")
    print('#include "lib/tokenizer/unicode_tables.h"\n\nnamespace dstrain::unicode {')
    groups = {g: set() for g in "LMNPSZ"}
    exact = {}
    for name in CATEGORIES:
        exact[name] = regex(rf"\p{{{name}}}")
        if name[0] in groups:
            groups[name[0]] |= exact[name]
    table("kLetter", groups["L"], r"\p{L}")
    table("kMark", groups["M"], r"\p{M}")
    table("kNumber", groups["N"], r"\p{N}")
    table("kPunctuation", groups["P"], r"\p{P}")
    table("kSymbol", groups["S"], r"\p{S}")
    words = regex(r"\w")
    table("kWord", words, r"\w of Oniguruma")
    table("kNumeric", alone(pre_tokenizers.Digits(individual_digits=True), "a"), "Rust's char::is_numeric")
    table("kOldPunctuation", alone(pre_tokenizers.Punctuation(), "a"), "ASCII punctuation and category P of Unicode 8")
    table("kOldOther", vanishing(bert(clean_text=True)) | {9, 10, 13}, "Cc, Cf, Co of Unicode 8, and U+FFFD")
    table("kOldNonspacing", vanishing(bert(strip_accents=True)), "Mn of Unicode 8")
    table("kOldMark", vanishing(normalizers.StripAccents()), "M of Unicode 9")
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    active = {c for c in CODES if nfkd.normalize_str(chr(c)) != chr(c)}
    active |= {ord(d) for c in list(active) for d in nfd.normalize_str(chr(c))}
    # U+0345 has the highest combining class: whatever has a class at all moves before it.
    active |= {c for c in CODES if nfd.normalize_str("a\u0345" + chr(c)) not in ("a\u0345" + chr(c), "a\u0345" + nfd.normalize_str(chr(c)))}
    table("kActive", active, "what a normal form of Unicode 9 can change, move or compose")

    lower = {c: normalizers.Lowercase().normalize_str(chr(c)) for c in CODES}
    utf8proc = ctypes.CDLL(ctypes.util.find_library("utf8proc"))
    print("\n// Where Rust's to_lowercase is not utf8proc 2.8's: a character and its one or two lower-case characters.")
    print("const std::vector<LowerCase> kLower{")
    for c, s in lower.items():
        if s != chr(utf8proc.utf8proc_tolower(c)):
            print(f"    {{{c:#x}, {ord(s[0]):#x}, {ord(s[1]) if len(s) > 1 else 0:#x}}},")
    print("};")

    pcre = Pcre2()
    print("\n// Properties by name, with what Oniguruma has beyond PCRE2.")
    print("const std::vector<Property> kProperties{")
    rows = [(n, n, exact[n]) for n in CATEGORIES] + [(g, g, groups[g]) for g in groups]
    rows += [(s, "sc:" + s, regex(rf"\p{{{s}}}")) for s in SCRIPTS]
    # PCRE2 10.42 knows \p{sc:Han}; its plain \p{Han} goes by script extensions.
    for name, theirs, codes in rows:
        known = pcre.matches(rf"\p{{{theirs}}}")
        if known - codes - {10}:
            print(f"    // PCRE2 has {len(known - codes)} more of {name}")
        added = "".join(f"\\\\x{{{a:x}}}" + (f"-\\\\x{{{b:x}}}" if b > a else "") for a, b in ranges(codes - known))
        print(f'    {{"{name}", "{theirs}",')
        while True:
            cut = added[:100]
            if len(added) > 100:
                cut = cut[:cut.rindex("\\\\x")] if "\\\\x" in cut[1:] else added
                if cut.endswith("-"):
                    cut = cut[:-1]
            print(f'     "{cut}"', end="")
            added = added[len(cut):]
            print("}," if not added else "")
            if not added:
                break
    print("};\n\n}  // namespace dstrain::unicode")


main()
