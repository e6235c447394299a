"""Byte-level vocabularies in two older forms: tiktoken's ranks, and GPT-2's pair of a vocabulary and merges; a document in and out.

One idea: tiktoken merges any two neighbours whose join is a token, the lowest rank first. Merging a token's own bytes by that rule
with lower ranks only ends in the two parts that make it, for no other pair with that join ever stands alone in a text. So ranks
are merges; where a token ends in more than two parts, all pairs that spell it merge, and a word that is a token is taken whole.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from hornbook.errors import DamagedError, UserError
from hornbook.files import write_text
from hornbook.text.bpe import spell, unspell
from hornbook.text.published import byte_level, merges_of, read_json, read_text
from hornbook.text.split import SPLITS, patterns_named
from hornbook.text.tokenizer import Tokenizer

PAIRS = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
# How the pair's readers cut and normalize text, by the class that a tokenizer_config.json names.
CLASSES = {"GPT2Tokenizer": ("gpt2", None), "Qwen2Tokenizer": ("qwen2", "NFC")}
MOST_BYTES, LONGEST = 1 << 26, 512  # of a file, and of one token: a merge of n bytes takes n * n steps
END = "<|endoftext|>"
_FILL = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
_LLAMA3 = [
    "begin_of_text", "end_of_text", *(f"reserved_special_token_{n}" for n in range(4)), "start_header_id", "end_header_id",
    "reserved_special_token_4", "eot_id", *(f"reserved_special_token_{n}" for n in range(5, 251)),
]  # fmt: skip
# The published files by name: how they cut text, and their special tokens (tiktoken_ext/openai_public.py; llama3's tokenizer.py).
KNOWN: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": ("gpt2", {END: 50256}),
    "p50k_base": ("gpt2", {END: 50256}),
    "cl100k_base": ("cl100k", {END: 100257, **_FILL, "<|endofprompt|>": 100276}),
    "o200k_base": ("o200k", {END: 199999, "<|endofprompt|>": 200018}),
    "llama3": ("cl100k", {f"<|{name}|>": 128000 + n for n, name in enumerate(_LLAMA3)}),
}


def looks_like_ranks(file: Path) -> bool:
    """Whether a file begins with a line of base64, a space and a number."""
    with file.open("rb") as opened:
        word, _, rank = opened.read(200).split(b"\n")[0].partition(b" ")
    return bool(word) and len(word) % 4 == 0 and rank.strip().isdigit()


def read_ranks(file: Path, split: str | None = None) -> dict[str, Any]:
    """The tokenizer.json of a `*.tiktoken` file. A file of no known name needs the `split`, and has no special tokens."""
    name = file.name.removesuffix(".gz").removesuffix(".tiktoken")
    known = KNOWN.get(split or name) or KNOWN.get(name)
    if split is None and known is None:
        fix = f"give split=NAME: {', '.join(SPLITS)}, or name the file {', '.join(KNOWN)}"
        raise UserError("how this vocabulary cuts text is not in the file", where=str(file), why="ranks are tokens alone", fix=fix)
    cut, specials = known or ("", {})
    patterns = patterns_named(cut if split is None or split in KNOWN else split)
    ranks = dict(_ranks(file))
    if len(set(ranks.values())) != len(ranks) or set(ranks.values()) & set(specials.values()):
        raise _damaged(file, "two tokens have the same rank, or the rank of a special token")
    rows = {i: spell(token) for token, i in ranks.items()} | {i: name for name, i in specials.items()}
    if max(rows, default=0) > 2 * len(rows) + 1000:
        raise _damaged(file, f"its {len(ranks)} tokens have ranks up to {max(rows)}")
    unused = {f"<|unused_{i}|>": i for i in range(max(rows, default=-1) + 1) if i not in rows}
    merges, whole = merges_of_ranks(ranks)
    pairs = [f"{spell(left)} {spell(right)}" for left, right in merges]
    vocab = {spell(token): i for token, i in sorted(ranks.items(), key=lambda item: item[1])}
    return byte_level(vocab, pairs, patterns, dict(sorted((specials | unused).items(), key=lambda item: item[1])), whole=whole)


def _ranks(file: Path) -> Iterator[tuple[bytes, int]]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file, str(error)) from error
    if len(data) > MOST_BYTES:
        raise _damaged(file, f"it has more than {MOST_BYTES:,} bytes")
    for number, line in enumerate(data.splitlines(), 1):
        word, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(word, validate=True)
        except binascii.Error:
            token = b""
        if not 0 < len(token) <= LONGEST or not rank.isdigit() or len(rank) > 9:
            raise _damaged(file, f"line {number} is no base64 of a token, space and rank: {line[:60]!r}")
        yield token, int(rank)


def merges_of_ranks(ranks: Mapping[bytes, int]) -> tuple[list[tuple[bytes, bytes]], bool]:
    """(merges, whole): the pairs that make the tokens, by rank, and whether a word that is a token has to be taken whole."""
    merges: list[tuple[bytes, bytes]] = []
    whole = False
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _parts(token, ranks, rank)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
        elif len(parts) > 2:
            whole = True
            merges += _cuts(token, ranks)
    return merges, whole


def _parts(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    edges = list(range(len(token) + 1))
    found = [ranks.get(token[i : i + 2], limit) for i in range(len(token) - 1)]  # of the part from edge i and the next one
    while len(found) > 1 and (rank := min(found)) < limit:
        i = found.index(rank)
        del found[i], edges[i + 1]
        for j in range(max(i - 1, 0), min(i + 1, len(found))):
            found[j] = ranks.get(token[edges[j] : edges[j + 2]], limit)
    return [token[start:end] for start, end in pairwise(edges)]


def _cuts(token: bytes, ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
    return sorted(
        (pair for pair in halves if pair[0] in ranks and pair[1] in ranks), key=lambda pair: (ranks[pair[0]], ranks[pair[1]])
    )


def write_ranks(tokenizer: Tokenizer, path: Path) -> None:
    """Write a `*.tiktoken` file: every token with its id as its rank. Special tokens and the pattern are not part of the format.

    A tokenizer whose merges are not what tiktoken would do with those ranks is a `UserError`.
    """
    model = tokenizer.document["model"]
    ranks = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)}
    theirs = [(unspell(left) or b"", unspell(right) or b"") for left, right in merges_of(tokenizer.document)]
    found, whole = merges_of_ranks(ranks)
    every = {pair for token in ranks for pair in _cuts(token, ranks)} if set(theirs) != set(found) else set()
    rising = all(ranks[a + b] <= ranks[c + d] for (a, b), (c, d) in zip(theirs, theirs[1:], strict=False))
    if not rising or (every and set(theirs) != every) or (whole and not model.get("ignore_merges")) or tokenizer.normalizer:
        why = "its merges do not come in the order of its ids, one pair for each token, or it normalizes text"
        raise UserError("tiktoken would give other ids", where=str(path), why=why, fix="save it as tokenizer.json")
    lines = [f"{base64.b64encode(token).decode('ascii')} {i}\n" for token, i in ranks.items()]
    write_text(path, "".join(lines))


# --- GPT-2's pair ---------------------------------------------------------------------------------------------------------


def read_pair(file: Path, settings: Mapping[str, Any], split: str | None = None) -> dict[str, Any]:
    """The tokenizer.json of encoder.json + vocab.bpe, or vocab.json + merges.txt; `file` is either of the two.

    How text is cut is in neither: without a `split`, the files have to be GPT-2's own, or the `settings`, which are those of
    tokenizer_config.json, have to name their class. A name that is not made of single bytes by merges is a special token.
    """
    names = next(pair for pair in PAIRS.items() if file.name in pair)
    vocab_file, merges_file = (file.with_name(name) for name in names)
    if not vocab_file.is_file() or not merges_file.is_file():
        missing = merges_file if vocab_file.is_file() else vocab_file
        raise UserError("one half of the tokenizer is missing", where=str(missing), fix="put both files into one folder")
    vocab = read_json(vocab_file)
    if not all(type(i) is int for i in vocab.values()):
        raise _damaged(vocab_file, "an id is no whole number")
    lines = read_text(merges_file).split("\n")
    cut, normalizer = CLASSES.get(str(settings.get("tokenizer_class")).removesuffix("Fast"), ("", None))
    if not cut and vocab_file.name == "encoder.json" and len(vocab) == vocab.get(END, -1) + 1 == 50257:
        cut = "gpt2"
    if not (split or cut):
        why = f"merges are tokens alone, and no tokenizer_config.json names one of the classes {', '.join(CLASSES)}"
        fix = f"give split=NAME: {', '.join(SPLITS)}, or name the tokenizer_class in a tokenizer_config.json beside the files"
        raise UserError("how this vocabulary cuts text is not in its files", where=str(file), why=why, fix=fix)
    merges = [line for line in lines[lines[0].startswith("#version") :] if line]
    made = {merge.replace(" ", "", 1) for merge in merges}
    specials, ordinary = _added(settings, file)
    specials |= {name: i for name, i in vocab.items() if len(name) != 1 and name not in made}
    normalizer = normalizer if split in (None, cut) else None
    document = byte_level(vocab, merges, patterns_named(split or cut), specials, ordinary, normalizer)
    if settings.get("add_prefix_space"):
        if (split or cut) != "gpt2":
            raise UserError("a space before the text goes with split='gpt2'", where=str(file), fix="leave add_prefix_space out")
        document["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return document


def _added(settings: Mapping[str, Any], file: Path) -> tuple[dict[str, int], set[str]]:
    """The tokens that a tokenizer_config.json adds, and those of them that are text to a reader."""
    rows = settings.get("added_tokens_decoder") or {}
    if not isinstance(rows, dict) or not all(
        i.isdecimal() and len(i) < 10 and isinstance(row, dict) and isinstance(row.get("content"), str) for i, row in rows.items()
    ):
        raise _damaged(file.with_name("tokenizer_config.json"), "its added_tokens_decoder is no list of ids and tokens")
    return {row["content"]: int(i) for i, row in rows.items()}, {row["content"] for row in rows.values() if not row.get("special")}


def write_pair(tokenizer: Tokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt. How text is cut is not part of the format; GPT-2's readers cut as split="gpt2" does."""
    vocab = {**tokenizer.document["model"]["vocab"], **tokenizer.specials}
    merges = map(" ".join, merges_of(tokenizer.document))
    write_text(folder / "vocab.json", json.dumps(dict(sorted(vocab.items(), key=lambda item: item[1])), ensure_ascii=False) + "\n")
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")


def _damaged(file: Path, why: str) -> DamagedError:
    return DamagedError("the vocabulary cannot be read", where=str(file), why=why, fix="download it again")
