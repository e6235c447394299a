"""The textbook byte-pair encoding: text in, merges out; ids in, text out.

One idea: count neighbouring pairs, replace the most frequent one by a new id, repeat. Everything else in this package is the
same thing made fast, and is tested against this file. Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words
with Subword Units", 2016, algorithm 1; on bytes as in Radford et al., "Language Models are Unsupervised Multitask Learners",
2019, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from hornbook.errors import UserError, near

Pair = tuple[int, int]


def get_stats(ids: Sequence[int], counts: dict[Pair, int] | None = None) -> dict[Pair, int]:
    """Count every neighbouring pair, in the order in which the pairs are first seen; `counts` is added to in place."""
    counts = {} if counts is None else counts
    for pair in zip(ids, ids[1:], strict=False):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def merge(ids: Sequence[int], pair: Pair, idx: int) -> list[int]:
    """Replace every occurrence of `pair` by `idx`, from left to right: (a, a) in a a a becomes idx a."""
    out: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(idx)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def train(
    text: str, vocab_size: int, verbose: bool = False, ties: Literal["first", "lowest"] = "first"
) -> tuple[dict[Pair, int], dict[int, bytes]]:
    """Learn merges from the bytes of one text and return (pair -> new id, id -> bytes).

    Ids 0..255 are the byte values. Among equally frequent pairs, "first" takes the one seen first and "lowest" the smallest
    (left id, right id), which is Hugging Face's rule. A text that runs out of pairs gives a smaller vocabulary.
    """
    if vocab_size < 256:
        raise UserError(f"vocab_size={vocab_size} is too small", why="the 256 bytes come first", fix="use 256 or more")
    if ties not in ("first", "lowest"):
        raise UserError(f"ties={ties!r} is not a rule for ties", fix=near(str(ties), ("first", "lowest")))
    ids: list[int] = list(text.encode("utf-8"))
    merges: dict[Pair, int] = {}
    vocab = {byte: bytes([byte]) for byte in range(256)}
    for idx in range(256, vocab_size):
        stats = get_stats(ids)
        if not stats:
            break
        if ties == "first":
            pair = max(stats, key=lambda p: stats[p])
        else:
            pair = max(stats, key=lambda p: (stats[p], -p[0], -p[1]))
        ids = merge(ids, pair, idx)
        merges[pair] = idx
        vocab[idx] = vocab[pair[0]] + vocab[pair[1]]
        if verbose:
            print(f"merge {idx - 255}/{vocab_size - 256}: {pair} -> {idx} {vocab[idx]!r} seen {stats[pair]} times")
    return merges, vocab


def encode(text: str, merges: Mapping[Pair, int]) -> list[int]:
    """Apply the merges in the order in which they were learned."""
    ids: list[int] = list(text.encode("utf-8"))
    while len(ids) >= 2:
        pair = min(get_stats(ids), key=lambda p: merges.get(p, float("inf")))
        if pair not in merges:
            break
        ids = merge(ids, pair, merges[pair])
    return ids


def decode(ids: Sequence[int], vocab: Mapping[int, bytes]) -> str:
    """Join the bytes; a cut character shows as U+FFFD."""
    return b"".join(vocab[i] for i in ids).decode("utf-8", errors="replace")
