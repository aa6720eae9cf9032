"""The mixed corpus that tokenizers are compared on: 100,000 lines of bytes, the same on every machine.

English, Chinese, Arabic, Hindi, other scripts, code, emoji with joiners, combining marks, every Unicode space, digits of all
scripts, contractions, text like special tokens, random characters, broken UTF-8, empty lines, and one line of 10 MB.
"""
import unicodedata

ENGLISH = """the of and to in is that it was for on are with as his they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many then
them would write like so these her long make thing see him two has look more day could go come did my sound no most number who
over know water than call first people may down side been now find any new work part take get place made live where after back
little only round man year came show every good me give our under name very through just form much great think say help low
line before turn cause same mean differ move right boy old too does tell sentence set three want air well also play small end
put home read hand port large spell add even land here must big high such follow act why ask men change went light kind off
need house picture try us again animal point mother world near build self earth father""".split()
CHINESE = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运"
ARABIC = "في من على أن إلى هذا كان التي الذي ما لا عن مع كل هو هي بعد قبل عند أو ثم حتى لم لن قد كما بين هذه ذلك العالم الكتاب الناس يوم سنة ٱلْكِتَابُ مُحَمَّدٌ".split()
HINDI = "यह है में की के और से को पर नहीं एक कि था हम तुम वे कर रहा होता क्या किताब पानी दुनिया समय लोग क्षत्रिय ज्ञान श्री कृष्ण विद्यार्थी".split()
OTHERS = ("это как его что для они был при или мы русский язык ελληνικά γλώσσα και στην Ώρα עברית שלום עולם ภาษาไทย สวัสดี 日本語です カタカナ "
          "ひらがな ﾊﾝｶｸ が 한국어 조선말 각 தமிழ் நன்றி বাংলা ქართული հայերեն አማርኛ မြန်မာ ខ្មែរ İstanbul Straße ﬁnd ǅungla naïve café e\u0301te\u0301 Ångström "
          "A\u030angstro\u0308m Việt Nam ŉ ſ K Å ½ ² ⅷ ㎏ ㍿ ﷺ ① ª Ⅻ").split()
CODE = ["def f(x, y=None):", "    return x**2 + y[-1]", "for (int i = 0; i < n; ++i) {", "\t}", "#include <vector>", "x = {'a': 1, \"b\": [2.5e-3, 0xFF]}",
        "SELECT * FROM t WHERE id != 42;", "<div class=\"a b\">&nbsp;</div>", "if (a && !b || c) { return *p->q; }", "// TODO: fix_me(snake_case, camelCase)",
        "\\begin{equation} \\alpha_{i}^{2} \\end{equation}", "https://example.org/a/b?c=d&e=%20#f", "user@example.com", "--option=value -x ./a.out 2>&1 | tee log.txt",
        "λ x → x ∘ y ≠ ∅", "```python\r\nprint('hi')\r\n```"]
EMOJI = ["😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "🇫🇷🇯🇵", "❤️", "1️⃣", "🧑🏿‍🚀", "☃", "🫠", "🪿", "👩‍❤️‍💋‍👨"]
SPACES = [chr(c) for c in [9, 10, 11, 12, 13, 0x20, 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000,
                           0xFEFF]]
DIGITS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) in ("Nd", "Nl", "No")]
MARKS = [chr(c) for c in range(0x300, 0x370)] + [chr(c) for c in (0x345, 0x5B0, 0x5B4, 0x64B, 0x651, 0x93C, 0x94D, 0x1AB0, 0x20D0, 0x3099, 0x309A, 0xFE0F, 0x1161, 0x11A8)]
CONTRACTIONS = ["I'm", "you've", "we'll", "he'd", "it's", "don't", "they're", "IT'S", "WE'LL", "'ſ", "’s", "'S", "'tis", "rock'n'roll", "do not"]
SPECIAL = ["<|endoftext|>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]", "<mask>", "<unk>", "[UNK]", "<pad>", "<0x41>", "##ing", "▁", "▁the", "Ġthe", "<|im_start|>",
           "New York", "NEW YORK", "tokenword", "</w>", "<|endoftext|><|endoftext|>", "  <mask>  "]
BROKEN = [b"\xff", b"\xc3", b"\xe6\x97", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\x80\x80", b"\xf0\x9f\x98", b"\xe0\x80\x80", b"\xfe\xff", b"\xf8\x88\x80\x80\x80"]


class Random:
    """splitmix64: the same numbers under every version of Python."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        return (z ^ (z >> 31)) % n

    def choice(self, items):
        return items[self.below(len(items))]


def words(r, items, n, space=" "):
    return space.join(r.choice(items) for _ in range(n))


def english(r):
    n = 3 + r.below(18)
    # Squares of uniform numbers: frequent words are frequent.
    line = [ENGLISH[r.below(len(ENGLISH)) * r.below(len(ENGLISH)) // len(ENGLISH)] for _ in range(n)]
    if r.below(3) == 0:
        line.insert(r.below(n), r.choice(CONTRACTIONS))
    if r.below(4) == 0:
        line.insert(r.below(n), str(r.below(10 ** (1 + r.below(9)))))
    text = " ".join(line)
    return text[0].upper() + text[1:] + r.choice([".", "!", "?", ",", "...", '"', "", ";", " -- ok", "\n", " "])


def chinese(r):
    return "".join(r.choice(CHINESE) for _ in range(4 + r.below(30))) + r.choice(["。", "，", "！", "？", "：", ""]) + r.choice(["", "2024年", "ABC", "「引用」"])


def random_character(r):
    while True:
        c = r.below(0x110000 if r.below(8) == 0 else 0x3000)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def line(r):
    """One line, as bytes; most are English, as in what people train on."""
    kind = r.below(40)
    if kind < 18:
        return english(r).encode()
    if kind < 22:
        return chinese(r).encode()
    if kind < 24:
        return words(r, ARABIC, 3 + r.below(12)).encode()
    if kind < 26:
        return words(r, HINDI, 3 + r.below(12)).encode()
    if kind < 28:
        return words(r, OTHERS, 2 + r.below(10)).encode()
    if kind < 31:
        return (" " * (4 * r.below(4)) + words(r, CODE, 1 + r.below(3), r.choice(["\n", " ", "\n    "]))).encode()
    if kind == 31:
        return words(r, EMOJI + ENGLISH[:20], 1 + r.below(8), r.choice(["", " "])).encode()
    if kind == 32:
        return "".join(r.choice(ENGLISH)[:2] + "".join(r.choice(MARKS) for _ in range(r.below(5))) for _ in range(1 + r.below(8))).encode()
    if kind == 33:
        return "".join(r.choice(["a", "the", "", "7", "."]) + r.choice(SPACES) * (1 + r.below(3)) for _ in range(1 + r.below(10))).encode()
    if kind == 34:
        return "".join(r.choice(DIGITS) + r.choice(["", "", "", " ", "a", "."]) for _ in range(1 + r.below(20))).encode()
    if kind == 35:
        return "".join(random_character(r) + r.choice(["", "", " ", "x"]) for _ in range(1 + r.below(20))).encode()
    if kind == 36:
        return r.choice([b"", b"", b" ", b"\n", b"\t\t", b"\r\n\r\n", b"  \n  "])
    if kind == 37:
        return b"".join(r.choice([r.choice(BROKEN), r.choice(ENGLISH).encode(), b" ", "日".encode()]) for _ in range(1 + r.below(10)))
    if kind == 38:
        return "".join(r.choice([r.choice(SPECIAL), " " * r.below(3), r.choice(ENGLISH)]) for _ in range(1 + r.below(8))).encode()
    return (r.choice(["a", "=", "-", " ", "ab", "\n", "9", "한", "!?", "A\u0301"]) * (1 + r.below(200))).encode()


def lines(count=100_000, long_bytes=10_000_000, seed=4):
    r = Random(seed)
    out = [line(r) for _ in range(count - 1)]
    long = bytearray()
    while len(long) < long_bytes:
        more = line(r)
        try:
            more.decode()
        except UnicodeDecodeError:
            continue
        long += more + b" "
    out.insert(count // 2, bytes(long[:long_bytes]).decode(errors="ignore").encode())
    return out


def characters():
    """Every character, alone, beside letters and marks, and twice: lines of 500."""
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    return ["".join(f"a{chr(c)}b {chr(c)}\u0301{chr(c)} " for c in codes[i:i + 500]).encode() for i in range(0, len(codes), 500)]
