"""The tokenizer laboratory, from close: a text's tokens down to the byte, and a vocabulary row by row.

A tokenizer flows in, plain dicts flow out. One idea: a piece has three faces, and most confusion is about which one is shown:
its bytes, the characters that those bytes are a part of, and the visible alphabet in which GPT-2 and its heirs spell bytes
(Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2).
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import regex

from hornbook.text.bpe import spell
from hornbook.text.published import merges_of
from hornbook.text.split import Splitter
from hornbook.text.tokenizer import Tokenizer

SCRIPTS = (
    "Latin Han Hiragana Katakana Hangul Cyrillic Greek Arabic Hebrew Devanagari Bengali Tamil Telugu Thai Georgian Armenian".split()
)
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{{name}}})" for name in SCRIPTS) + r"|(?P<other>\p{L})")
NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})


def shown(piece: bytes) -> str:
    """Bytes as text; those that are no whole character, and control characters, as `\\xe4`."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def face(tokenizer: Tokenizer, token: int) -> str:
    """What a token shows of the text; one that stands for none, as for what is unknown, has its name."""
    return shown(tokenizer.token_bytes(token)) or tokenizer.spelled(token)


def inspect(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """The text's tokens (id, piece, bytes, spelling), its characters (code point, name, bytes), each word's merges.

    Only byte-level BPE shows merges.
    """
    ids = tokenizer.encode(text)
    pieces = [tokenizer.token_bytes(token) for token in ids]
    ranks, words = merge_ranks(tokenizer), dict.fromkeys(Splitter(tokenizer.patterns)(text) if tokenizer.in_bytes else ())
    return {
        "tokens": [
            {"id": token, "piece": face(tokenizer, token), "bytes": piece.hex(" "), "spelled": tokenizer.spelled(token)}
            for token, piece in zip(ids, pieces, strict=True)
        ],
        "characters": [
            {"character": c, "code": f"U+{ord(c):04X}", "ord": ord(c), "name": unicodedata.name(c, "no name"),
             "bytes": c.encode().hex(" ")}
            for c in dict.fromkeys(text)
        ],
        "merges": {word: [[shown(p) for p in step] for step in merges(ranks, word.encode())] for word in words},
        "size": {"characters": len(text), "bytes": len(text.encode()), "tokens": len(ids)},
    }  # fmt: skip


def merge_ranks(tokenizer: Tokenizer) -> dict[tuple[str, str], int]:
    """The merges of a byte-level BPE in the order in which they were learned, spelled in GPT-2's alphabet."""
    return {pair: n for n, pair in enumerate(merges_of(tokenizer.document))}


def merges(ranks: Mapping[tuple[str, str], int], word: bytes) -> list[list[bytes]]:
    """The pieces of one word before and after every merge: the earliest learned merge goes first, everywhere at once."""
    letters = [spell(bytes([byte])) for byte in word]
    raw = dict(zip(letters, (bytes([byte]) for byte in word), strict=True))
    steps = [letters]
    while len(steps[-1]) > 1:
        now = steps[-1]
        best = min(zip(now, now[1:], strict=False), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined, i = [], 0
        while i < len(now):
            both = tuple(now[i : i + 2]) == best
            joined.append("".join(now[i : i + 2]) if both else now[i])
            i += 2 if both else 1
        steps.append(joined)
    return [[b"".join(raw[c] for c in piece) for piece in step] for step in steps]


def script(piece: bytes) -> str:
    """Where a piece belongs: the script of its first letter, else digits, spaces, signs, or a part of a character."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "part of a character"
    if letter := _SCRIPT.search(text):
        return str(letter.lastgroup)
    bare = text.strip()
    return "spaces" if not bare else "digits" if all(c.isnumeric() for c in bare) else "signs"


def unreachable(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens that no text of their own gives, each with the reason.

    A token that is a part of a character cannot be asked for by text: it is judged by its bytes and the merges alone.
    """
    ranks, found = merge_ranks(tokenizer), dict[int, str]()
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(token)
        if not piece:
            continue
        if NEVER_IN_UTF8.intersection(piece):
            found[token] = "a byte that UTF-8 never has"
            continue
        try:
            ids = tokenizer.alone(token)
        except UnicodeDecodeError:
            if len(merges(ranks, piece)[-1]) > 1:
                found[token] = "no merge leads to it"
            continue
        if ids != [token]:
            found[token] = "its text becomes " + " ".join(face(tokenizer, i) for i in ids)
    return found


def vocabulary(tokenizer: Tokenizer, longest: int = 20) -> dict[str, Any]:
    """What a vocabulary spends its rows on: scripts, the longest tokens, those out of reach, those that say the same."""
    pieces = {token: tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
    text_of = {token: piece for token, piece in pieces.items() if piece}
    same, alike = defaultdict[bytes, list[int]](list), defaultdict[str, list[int]](list)
    for token, piece in text_of.items():
        same[piece].append(token)
        alike[shown(piece).strip().casefold() or shown(piece)].append(token)
    lost = unreachable(tokenizer)
    scripts = Counter("one byte" if len(piece) == 1 else script(piece) for piece in text_of.values())
    return {
        "rows": tokenizer.vocab_size,
        "specials": sorted(tokenizer.specials),
        "scripts": dict(scripts.most_common()),
        "longest": [
            {"id": token, "piece": shown(piece), "bytes": len(piece)}
            for token, piece in sorted(text_of.items(), key=lambda item: -len(item[1]))[:longest]
        ],
        "unreachable": [{"id": token, "piece": shown(pieces[token]), "why": why} for token, why in lost.items()],
        "duplicates": [{"piece": shown(piece), "ids": ids} for piece, ids in same.items() if len(ids) > 1],
        "variants": sum(len(ids) - 1 for ids in alike.values()),
    }
