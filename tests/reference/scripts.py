"""Texts in many scripts, made of a seed: what people write, what machines write, and what neither should."""

from __future__ import annotations

import random

WORDS = (
    "the quick brown fox", "naïve café Ångström", "Größe straße ĲSSEL ǅ", "Привет мир, ёлка",
    "Ελληνικά ΣΊΓΜΑΣ ς", "שָׁלוֹם עולם", "مرحبا بالعالم ﷽ ١٢٣", "नमस्ते दुनिया क्षि", "সোনার বাংলা",
    "ไทยไม่มีช่องว่าง กำ", "ສະບາຍດີ", "မြန်မာ", "ខ្មែរ", "አማርኛ", "ქართული", "Հայերեն", "你好，世界。龘靐",
    "繁體字與簡体字", "日本語のテキスト カタカナ ｶﾀｶﾅ ㍿", "한국어 텍스트",
    "\u1112\u1161\u11ab\u1100\u1173\u11af", "𠮷野家 𝒻𝒶𝓃𝒸𝓎 𐍈", "Việt Nam Tiếng",
    "e\u0301a\u0308\u0323o\u0302\u0301", "Z\u0351\u036b\u0343a\u0328\u0300", "ﬁﬂﬃ ½ ² ™ ℌ Å \u212b ① Ⅷ",
)  # fmt: skip
SPACES = (
    " ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u3000", "\u2003", "\u2028", "\u1680", "\x0b",
    "\x0c", "\x85", "",
)  # fmt: skip
SIGNS = (
    "🙂", "👩‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "👍🏽", "☎\ufe0f", "\u200b", "\u200c", "\u200d",
    "\ufeff", "\u00ad", "\u202e", "\x00", "\x01", "\x1b", "\x7f", "\u0300", "\ufffd", "\ue000",
    "\U0010ffff", "▁", "Ġ", "_", "...", "!?", "——", "“”", "«»", "、", "¿", "€", "\\", "``''",
)  # fmt: skip
CODE = (
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {", '{"a": [1, 2.5e-3, null]}',
    "https://example.org/?q=a%20b#c", "<div class='x'>", "x_1 = y[0:3]", "0xDEADBEEF", "$\\frac{a}{b}$",
    "camelCaseHTTPServer", "SELECT * FROM t;",
)  # fmt: skip
NUMBERS = ("0", "12", "345", "6789", "1234567890", "3.14159", "1,000,000", "-7", "٣٤", "०१", "１２", "2026-11-22")
CONTRACTIONS = ("don't", "I'LL", "we've", "it's", "'s", "'\u017f", "o’clock", "rock'n'roll", "DON'T")
KINDS = (WORDS, WORDS, SPACES, SPACES, SIGNS, CODE, NUMBERS, CONTRACTIONS)
RANGES = (
    (0, 0x250), (0x250, 0x800), (0x800, 0x3000), (0x3000, 0xA000), (0xA000, 0xD800), (0xE000, 0x10000),
    (0x10000, 0x20000), (0x20000, 0x110000),
)  # fmt: skip


def strings(seed: int, count: int) -> list[str]:
    """`count` texts of up to some ten parts: words of a script, blanks, signs, code, numbers, pieces of these, any characters."""
    dice = random.Random(seed)

    def part() -> str:
        if dice.random() < 0.08:
            return "".join(chr(dice.randrange(*dice.choice(RANGES))) for _ in range(dice.randrange(1, 4)))
        text = dice.choice(dice.choice(KINDS))
        if dice.random() < 0.4:
            start = dice.randrange(len(text) + 1)
            text = text[start : start + dice.randrange(1, 6)]
        return text * (dice.randrange(2, 9) if dice.random() < 0.03 else 1)

    return ["".join(part() for _ in range(dice.randrange(1, 11))) for _ in range(count)]
