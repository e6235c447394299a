"""SentencePiece's two kinds of vocabulary, BPE (Llama 2) and unigram (T5): text in, ids out, by scores.

One idea: BPE joins the neighbours that spell the best piece until none do; unigram takes, of all ways to cut the text into
pieces, the one of the highest sum (Viterbi; Kudo 2018, section 3.2). Both begin with the same normalized text, where a space is ▁,
and write a character without a piece in byte tokens, or as the unknown token.
Pairs that spell the same piece have one rank, as in SentencePiece; Hugging Face's tokenizers ranks them apart, which shows only
where two of them overlap. Sums are kept in float32, where SentencePiece keeps them, so that near ties fall to the same side.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, NoReturn

import regex

from hornbook.errors import UserError
from hornbook.text.bpe import utf8
from hornbook.text.normalize import Charsmap, Edit, Rule, Span, edited, forms, moved, prepends, replaces
from hornbook.text.published import NORMALIZERS, halves, refuse
from hornbook.text.sentencepiece import SPACE, finite
from hornbook.text.tokenizer import Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
UNKNOWN_PENALTY = 10.0
CACHED_WORDS, CACHED_LENGTH = 1 << 18, 64
MOST_GROWTH, LONGEST_REPLACEMENT = 100, 256
UNKNOWN_SHOWN = " ⁇ ".encode()
# The regular expressions that published normalizers use, as the `regex` module spells them.
REGEXES = {
    " {2,}": " {2,}", r"\A +": r"\A +", rf"(?<!{SPACE}){SPACE}+\z": rf"(?<!{SPACE}){SPACE}+\Z", r"(?<! ) +\z": r"(?<! ) +\Z",
}  # fmt: skip
BLANK = r"\p{White_Space}"
Found = tuple[int, int, int]  # an id and the stretch of normalized text that it stands for


class ScoredTokenizer(Tokenizer):
    """A `Tokenizer` of SentencePiece's kind. The text comes back as its normalizer left it."""

    in_bytes = False

    def __init__(self, document: Mapping[str, Any], config: Mapping[str, Any] | None = None, where: str = "tokenizer.json"):
        self._where, self.document, self._config = where, document, dict(config or {})
        self.normalizer, self.patterns = None, ()
        model, added = document.get("model"), document.get("added_tokens") or []
        if not isinstance(model, dict) or model.get("type") not in ("BPE", "Unigram"):
            self._refuse("its model is neither BPE nor Unigram")
        ids = self._ids_of(model)
        entries = isinstance(added, list) and all(isinstance(entry, dict) and type(entry.get("id")) is int for entry in added)
        if not entries or not all(entry.get("content") and isinstance(entry["content"], str) for entry in added):
            self._refuse("an added token has no content or no id")
        self.specials = {entry["content"]: entry["id"] for entry in added}
        names = {i: piece for piece, i in (ids | self.specials).items()}
        if sorted(names) != list(range(len(ids | self.specials))):
            self._refuse(f"the ids of its {len(ids)} pieces and {len(added)} added tokens are not 0, 1, 2, ...")
        unknown = ids.get(str(model.get("unk_token"))) if model["type"] == "BPE" else model.get("unk_id")
        self.unknown: int | None = unknown if type(unknown) is int and unknown in names else None
        self._fuse = model["type"] == "Unigram" or bool(model.get("fuse_unk"))
        ordinary = {entry["content"] for entry in added if not entry.get("special")}
        self._names = [names[i] for i in range(len(names))]
        self._read_pieces(self._names, ordinary, bool(model.get("byte_fallback")))
        known = {piece: i for piece, i in ids.items() if piece not in self.specials and (i not in self._byte_id.values())}
        self._id_of = known | {piece: self.specials[piece] for piece in ordinary}
        longest_first = sorted(map(regex.escape, ordinary), key=len, reverse=True)
        self._frozen = regex.compile("|".join([*longest_first, r"(?s:.)"])) if ordinary else None
        self._ranks = self._read_merges(model.get("merges") or []) if model["type"] == "BPE" else {}
        self._scores = self._read_scores(model["vocab"], ordinary) if model["type"] == "Unigram" else {}
        self._lengths = sorted({len(piece) for piece in self._scores})
        self._rules = [rule for step in self._steps("normalizer", "normalizers") for rule in self._normalizer(step)]
        self._rules += self._spaces()
        self._drops = self._dropped()
        self._known = lru_cache(CACHED_WORDS)(self._word)

    def encode(self, text: str) -> list[int]:
        """Text to ids; control strings in it stay text. What no token can write is the unknown token, else an error."""
        return [found[0] for found in self._found(self._normalized(text)[0])]

    def encode_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        text, spans = self._normalized(text, [(n, n + 1) for n in range(len(text))])
        found = list(self._found(text))
        return [i for i, _, _ in found], [(spans[start][0], spans[end - 1][1]) for _, start, end in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, without the space that `encode` puts before a text; a special shows as its name."""
        text = super().decode(ids)
        drop = min(self._drops, len(text) - len(text.lstrip(" ")))
        return text[drop:]

    def spelled(self, token: int) -> str:
        return self._names[self._checked(token)]

    def alone(self, token: int) -> list[int]:
        written = self.token_bytes(token).decode("utf-8").replace(" ", SPACE) if token in self.byte_ids else self.spelled(token)
        return [i for i, _, _ in self._found(written)]

    @property
    def byte_ids(self) -> Iterable[int]:
        """The ids of the byte tokens."""
        return self._byte_id.values()

    def scores_of_ranks(self) -> dict[str, float]:
        """A score for each piece that has one: merges that come earlier have higher ones, pieces that no merge makes the lowest."""
        scores = dict.fromkeys(self._id_of, -1.0 - len(self._ranks))
        return scores | {one + two: -float(rank) for (one, two), rank in self._ranks.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides ids."""
        parts = [self.document.get(key) for key in ("model", "normalizer", "pre_tokenizer")] + [sorted(self.specials.items())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()

    def _refuse(self, why: str) -> NoReturn:
        refuse(self._where, why, "a SentencePiece tokenizer as Llama 2 and T5 publish it")

    # --- text to ids ----------------------------------------------------------------------------------------------------

    def _normalized(self, text: str, spans: list[Span] | None = None) -> tuple[str, list[Span]]:
        """The text as the model reads it and, where `spans` of it are given, theirs."""
        utf8(text)  # half a character is refused where the text can still say which
        most = MOST_GROWTH * (len(text) + 10)
        for rule in self._rules:
            edits = list(rule(text))
            text, spans = edited(text, edits), spans and moved(spans, edits)
            if len(text) > most:
                self._refuse(f"its normalizer makes a text more than {MOST_GROWTH} times as long")
        return text, spans or []

    def _found(self, text: str) -> Iterator[Found]:
        start = 0
        for word in self._cut(text):
            found = self._known(word) if len(word) <= CACHED_LENGTH else self._word(word)
            yield from ((i, start + first, start + end) for i, first, end in found)
            start += len(word)

    def _word(self, word: str) -> list[Found]:
        return self._written(self._best(word) if self._scores else self._joined(word))

    def _cut(self, text: str) -> list[str]:
        """The words, where the tokenizer has them or where no piece could reach across; else the text as one."""
        if self._edges is None:
            return [text] if text else []
        return self._edges.findall(text)

    def _written(self, parts: Iterable[str]) -> list[Found]:
        """The ids of pieces that follow each other; what is no piece in bytes, or as unknown, a run of it once."""
        out: list[Found] = []
        end = 0
        for part in parts:
            start, end = end, end + len(part)
            if part in self._id_of:
                out.append((self._id_of[part], start, end))
            elif self._byte_id.keys() >= set(part.encode()):
                out += [(self._byte_id[byte], start, end) for byte in part.encode()]
            elif self.unknown is None:
                raise UserError(f"this vocabulary has no token for {part!r}", where=self._where, fix="remove that character")
            elif self._fuse and out and out[-1][0] == self.unknown:
                out[-1] = (self.unknown, out[-1][1], end)
            else:
                out.append((self.unknown, start, end))
        return out

    def _symbols(self, text: str) -> list[str]:
        return list(text) if self._frozen is None else self._frozen.findall(text)

    def _joined(self, text: str) -> list[str]:
        """BPE: the characters of the text, joined pair by pair; a joined right half leaves an empty place."""
        parts = self._symbols(text)
        size = len(parts)
        left, right = list(range(-1, size - 1)), list(range(1, size + 1))
        heap: list[tuple[int, int, str, str]] = []

        def offer(i: int) -> None:
            if i >= 0 and right[i] < size and (rank := self._ranks.get((parts[i], parts[right[i]]))) is not None:
                heapq.heappush(heap, (rank, i, parts[i], parts[right[i]]))

        for i in range(size):
            offer(i)
        while heap:
            _, i, one, two = heapq.heappop(heap)
            j = right[i]
            if parts[i] != one or j >= size or parts[j] != two:  # the place has changed since
                continue
            parts[i], parts[j], right[i] = one + two, "", right[j]
            if right[i] < size:
                left[right[i]] = i
            offer(i)
            offer(left[i])
        return [part for part in parts if part]

    def _best(self, text: str) -> list[str]:
        """Unigram: the pieces of the best sum; a character that is no piece costs more than the worst piece."""
        size = len(text)
        best, begins = array("f", bytes(4 * (size + 1))), [-1] * (size + 1)
        sums = array("f", [0.0])  # rounds to float32

        def offer(start: int, end: int, score: float) -> None:
            sums[0] = best[start] + score
            if begins[end] < 0 or sums[0] > best[end]:
                best[end], begins[end] = sums[0], start

        for start in range(size):
            alone = False
            for length in self._lengths:
                end = start + length
                if end <= size and (score := self._scores.get(text[start:end])) is not None:
                    alone |= length == 1
                    offer(start, end, score)
            if not alone:
                offer(start, start + 1, self._unknown_score)
        cuts = [size]
        while cuts[-1]:
            cuts.append(begins[cuts[-1]])
        return [text[start:end] for start, end in pairwise(cuts[::-1])]

    # --- the document ---------------------------------------------------------------------------------------------------

    def _ids_of(self, model: dict[str, Any]) -> dict[str, int]:
        vocab = model.get("vocab")
        if model["type"] == "Unigram":
            rows = isinstance(vocab, list) and all(isinstance(row, list) and len(row) == 2 for row in vocab)
            if not rows or not all(isinstance(piece, str) and finite(score) for piece, score in vocab or []):
                self._refuse("its vocabulary is no list of pieces and scores")
            vocab = {piece: i for i, (piece, _) in enumerate(vocab or [])}
        if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
            self._refuse("its vocabulary has no whole numbers as ids")
        return vocab

    def _read_pieces(self, names: list[str], ordinary: set[str], fallback: bool) -> None:
        special = {i for name, i in self.specials.items() if name not in ordinary}
        bytes_of = {i: bytes([int(raw[1], 16)]) for i, name in enumerate(names) if fallback and (raw := BYTE.fullmatch(name))}
        self._byte_id = {raw[0]: i for i, raw in bytes_of.items()}
        shown = [bytes_of.get(i) or utf8(name if i in special else name.replace(SPACE, " ")) for i, name in enumerate(names)]
        self._pieces = [b"" if i in special else piece for i, piece in enumerate(shown)]
        self._shown = [UNKNOWN_SHOWN if i == self.unknown else piece for i, piece in enumerate(shown)]

    def _read_merges(self, merges: list[str | list[str]]) -> dict[tuple[str, str], int]:
        ranks: dict[tuple[str, str], int] = {}
        before, rank = "", -1
        if not isinstance(merges, list):
            self._refuse("its merges are no list")
        for merge in merges:
            one, two = halves(merge)
            if not one or not two or one + two not in self._id_of:
                self._refuse(f"its merge {merge!r} does not join two pieces into a third")
            rank += one + two != before
            before = one + two
            ranks[one, two] = rank
        cut = SPACE in self._id_of and not any(re.search(f"[^{SPACE}]{SPACE}", piece) for piece in self._id_of)
        self._edges = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+") if cut and self._frozen is None else None
        return ranks

    def _read_scores(self, vocab: list[list[Any]], ordinary: set[str]) -> dict[str, float]:
        scores = {piece: float(score) for piece, score in vocab if piece in self._id_of and piece not in ordinary}
        worst, best = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
        self._unknown_score, self._edges = worst - UNKNOWN_PENALTY, None
        return scores | {piece: len(piece.encode()) * best - 0.1 for piece in ordinary}

    def _steps(self, name: str, inner: str) -> list[dict[str, Any]]:
        """A part of the document as a list of steps."""
        part = self.document.get(name)
        if part is None:
            return []
        steps = part.get(inner) if isinstance(part, dict) and part.get("type") == "Sequence" else [part]
        if not isinstance(steps, list) or not all(isinstance(step, dict) and isinstance(step.get("type"), str) for step in steps):
            self._refuse(f"its {name} is no list of steps")
        return steps

    def _normalizer(self, part: dict[str, Any]) -> Iterator[Rule]:
        kind = part["type"]
        if kind == "Precompiled":
            try:
                blob = base64.b64decode(part.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError, ValueError):
                self._refuse("its precompiled_charsmap is not base64")
            yield self._around_frozen(Charsmap(blob, self._where))
        elif len(str(part.get("prepend", part.get("content", "")))) > LONGEST_REPLACEMENT:
            self._refuse("its normalizer puts in a text of unheard length")
        elif kind == "Prepend" and isinstance(part.get("prepend"), str):
            yield prepends(part["prepend"])
        elif kind == "Strip":
            ends = [rf"\A{BLANK}+"] * bool(part.get("strip_left")) + [rf"(?<!{BLANK}){BLANK}+\Z"] * bool(part.get("strip_right"))
            yield from (replaces(end, "") for end in ends)
        elif kind == "Replace" and isinstance(part.get("content"), str) and isinstance(part.get("pattern"), dict):
            yield replaces(self._pattern(part["pattern"]), part["content"])
        elif kind in NORMALIZERS:
            yield forms(kind)
        else:
            self._refuse(f"its normalizer is {kind}")

    def _pattern(self, pattern: dict[str, Any]) -> str:
        if isinstance(pattern.get("String"), str) and pattern["String"]:
            return regex.escape(pattern["String"])
        if str(pattern.get("Regex")) not in REGEXES:
            self._refuse(f"its normalizer replaces {pattern}; known expressions: {', '.join(map(repr, REGEXES))}")
        return REGEXES[str(pattern["Regex"])]

    def _around_frozen(self, rule: Rule) -> Rule:
        """A rule that leaves the pieces that were defined by hand as they are."""
        frozen = self._frozen
        if frozen is None:
            return rule

        def edits(text: str) -> Iterator[Edit]:
            kept = {match.start(): match.end() for match in frozen.finditer(text) if len(match[0]) > 1 or match[0] in self.specials}
            at = 0
            for start, end in [*kept.items(), (len(text), len(text))]:
                yield from ((at + first, at + last, new) for first, last, new in rule(text[at:start]))
                at = end

        return edits

    def _spaces(self) -> Iterator[Rule]:
        """What a Metaspace pre-tokenizer does, after one that splits at white space where that stands before it."""
        steps = self._steps("pre_tokenizer", "pretokenizers")
        kinds = [step["type"] for step in steps]
        if not kinds:
            return
        if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) or steps[-1].get("replacement") != SPACE:
            self._refuse(f"its pre-tokenizer is {kinds}; known: Metaspace, WhitespaceSplit before it")
        scheme = steps[-1].get("prepend_scheme", "always" if steps[-1].get("add_prefix_space", True) else "never")
        split = steps[-1].get("split", True)
        if len(kinds) == 2:
            if scheme != "always" or not split:
                self._refuse("its words do not begin with a space each")
            yield from (replaces(rf"\A{BLANK}+|(?<!{BLANK}){BLANK}+\Z", ""), replaces(rf"{BLANK}+{SPACE}?", SPACE))
        yield replaces(" ", SPACE)
        if scheme != "never":
            yield prepends(SPACE, unless_there=True)
        if split:
            self._edges = re.compile(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")

    def _dropped(self) -> int:
        """How many spaces at the beginning of a text its decoder takes away."""
        count = 0
        for step in self._steps("decoder", "decoders"):
            kind = step["type"]
            if kind == "Strip" and step.get("content") == " " and type(step.get("start")) is int and step["start"] >= 0:
                count += step["start"]
            elif kind == "Metaspace":
                count += step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
            elif kind not in ("Replace", "ByteFallback", "Fuse"):
                self._refuse(f"its decoder has the step {kind}")
        return count
