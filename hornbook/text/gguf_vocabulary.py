"""A GGUF vocabulary <-> a `Tokenizer`: the keys under tokenizer.ggml in, and out as llama.cpp reads them.

One idea: GGUF names a kind (gpt2, llama, t5, bert) and, for byte-level BPE, a way to cut text; a name stands for a published
tokenizer, so what has no name there is refused instead of being cut in another way. The keys are those of ggml's docs/gguf.md.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from hornbook.errors import UserError, near
from hornbook.text.gguf import Metadata, opened, read_metadata
from hornbook.text.published import byte_level, merges_of
from hornbook.text.scored import ScoredTokenizer
from hornbook.text.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Vocabulary
from hornbook.text.split import PATTERNS
from hornbook.text.tokenizer import Tokenizer
from hornbook.text.wordpiece import INSIDE, SPECIALS, WordPiece, wordpiece_document

# llama.cpp's names of pre-tokenizers -> the patterns of the published tokenizers, their normalizer, and whether whole words win.
PRE: dict[str, tuple[list[str], str | None, bool]] = {
    "gpt-2": ([PATTERNS["gpt2"]], None, False),
    "default": ([PATTERNS["gpt2"]], None, False),
    "smollm": ([r"\p{N}", PATTERNS["gpt2"]], None, False),
    "smaug-bpe": ([PATTERNS["cl100k"]], None, False),
    "stablelm2": ([PATTERNS["qwen2"]], None, False),
    "llama-bpe": ([PATTERNS["cl100k"]], None, True),
    "qwen2": ([PATTERNS["qwen2"]], "NFC", False),
    "gpt-4o": ([PATTERNS["o200k"]], None, False),
}
SCORED = {"llama": False, "t5": True}  # whether the kind is unigram
# WordPiece's special tokens; the format spells the separator's key like this.
BERT = {"unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding", "cls_token": "cls", "mask_token": "mask"}


def load_gguf(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file; of its weights nothing is read."""
    steps = opened(path)
    return gguf_tokenizer(Metadata(steps.where, read_metadata(steps)[1]))


def gguf_tokenizer(file: Metadata) -> Tokenizer:
    """The tokenizer of the metadata: byte-level BPE ("gpt2"), SentencePiece's ("llama", "t5") or WordPiece ("bert")."""
    kind, pre = file.key("tokenizer.ggml.model", str), file.metadata.get("tokenizer.ggml.pre", "default")
    if kind not in ("gpt2", "bert", *SCORED):
        raise file.odd("tokenizer.ggml.model", f"{kind!r} is not known; known: gpt2, llama, t5, bert")
    tokens = file.key("tokenizer.ggml.tokens", list)
    types = np.asarray(file.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))).tolist()
    if not isinstance(types, list) or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise file.odd("tokenizer.ggml.token_type", f"there are {len(tokens)} tokens, each once and each with a type")
    if kind == "bert":
        return _wordpiece(file, tokens)
    settings = _settings(file, tokens, kind == "llama" or pre == "llama-bpe")
    if kind in SCORED:
        return _scored(file, kind, tokens, types, settings)
    if not isinstance(pre, str) or pre not in PRE:
        raise file.odd("tokenizer.ggml.pre", f"the pre-tokenizer {pre!r} is not known; {near(str(pre), PRE)}")
    specials = {name: i for i, (name, kind) in enumerate(zip(tokens, types, strict=True)) if kind not in (NORMAL, BYTE)}
    ordinary = {name for name, i in specials.items() if types[i] == USER_DEFINED}
    if any(not name.replace(SPACE, " ").strip() for name in ordinary):
        raise file.odd("tokenizer.ggml.token_type", "it makes spaces tokens outside of the merges")
    patterns, normalizer, whole = PRE[pre]
    document = byte_level(
        {name: i for i, name in enumerate(tokens)}, file.key("tokenizer.ggml.merges", list), patterns, specials, ordinary,
        normalizer, whole,
    )  # fmt: skip
    return Tokenizer(document, settings, where=file.where)


def _scored(file: Metadata, kind: str, tokens: list[str], types: list[int], settings: dict[str, Any]) -> Tokenizer:
    scores = file.key("tokenizer.ggml.scores", np.ndarray)
    rules = file.metadata.get("tokenizer.ggml.precompiled_charsmap", np.zeros(0, np.uint8))
    if not isinstance(rules, np.ndarray) or rules.dtype.kind not in "iu":
        raise file.odd("tokenizer.ggml.precompiled_charsmap", "it is no list of bytes")
    vocabulary = Vocabulary(
        tokens, scores.astype(float).tolist(), types, SCORED[kind], rules.astype(np.uint8).tobytes(),
        file.flag("tokenizer.ggml.remove_extra_whitespaces", False),
        file.flag("tokenizer.ggml.add_space_prefix", True),
    )  # fmt: skip
    return ScoredTokenizer(vocabulary.document(file.where), settings, file.where)


def _wordpiece(file: Metadata, tokens: list[str]) -> Tokenizer:
    """A piece that begins a word has ▁ before it, one inside a word nothing; what stands in brackets is as it was."""

    def published(token: str) -> str:
        if token.startswith("[") and token.endswith("]"):
            return token
        return token.removeprefix(SPACE) if token.startswith(SPACE) else INSIDE + token

    vocab = {published(token): i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise file.odd("tokenizer.ggml.tokens", "two of them stand for one piece")
    config = {
        name: tokens[_id(file, key, tokens)] for name, key in BERT.items() if f"tokenizer.ggml.{key}_token_id" in file.metadata
    }
    return WordPiece(wordpiece_document(vocab, config), config, file.where)


def _settings(file: Metadata, tokens: list[str], begins: bool) -> dict[str, Any]:
    """The tokenizer_config.json: begin and end tokens, and the chat template. `begins`: where the file does not say."""
    settings: dict[str, Any] = {"add_bos_token": file.flag("tokenizer.ggml.add_bos_token", begins)}
    for name in ("bos", "eos"):
        if f"tokenizer.ggml.{name}_token_id" in file.metadata:
            settings[f"{name}_token"] = tokens[_id(file, name, tokens)]
    if isinstance(file.metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = file.metadata["tokenizer.chat_template"]
    return settings


def _id(file: Metadata, name: str, tokens: list[str]) -> int:
    key = f"tokenizer.ggml.{name}_token_id"
    i: int = file.key(key, int)
    if not 0 <= i < len(tokens):
        raise file.odd(key, f"{i} is no id of the {len(tokens)} tokens")
    return i


# --- out ------------------------------------------------------------------------------------------------------------------


def gguf_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys of a tokenizer. What llama.cpp has no name for is a `UserError`."""
    settings = tokenizer.settings()
    if isinstance(tokenizer, WordPiece):
        found = _bert(tokenizer)
    else:
        found = _from_scored(tokenizer) if isinstance(tokenizer, ScoredTokenizer) else _from_bytes(tokenizer)
        found["tokenizer.ggml.add_bos_token"] = bool(tokenizer.begin_ids)
        for name in ("bos", "eos"):
            if (token := tokenizer.configured(f"{name}_token", settings)) in tokenizer.specials:
                found[f"tokenizer.ggml.{name}_token_id"] = tokenizer.specials[token]
    if isinstance(settings.get("chat_template"), str):
        found["tokenizer.chat_template"] = settings["chat_template"]
    return found


def _from_bytes(tokenizer: Tokenizer) -> dict[str, Any]:
    model = tokenizer.document["model"]
    way = (list(tokenizer.patterns), tokenizer.normalizer, bool(model.get("ignore_merges")))
    pre = next((name for name, known in PRE.items() if known == way), None)
    if pre is None:
        fix = "export with --to hf, or train with split='cl100k', 'o200k', 'qwen2' or 'gpt2'"
        raise UserError("llama.cpp has no name for how this tokenizer cuts text", where="tokenizer.json", why=str(way), fix=fix)
    rows = {i: (text, NORMAL) for text, i in model["vocab"].items()}
    for entry in tokenizer.document["added_tokens"]:
        rows[entry["id"]] = (entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [rows[i][0] for i in range(len(rows))],
        "tokenizer.ggml.token_type": [rows[i][1] for i in range(len(rows))],
        "tokenizer.ggml.merges": list(map(" ".join, merges_of(tokenizer.document))),
    }  # fmt: skip


def _from_scored(tokenizer: ScoredTokenizer) -> dict[str, Any]:
    found = vocabulary_of(tokenizer)
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "t5" if found.unigram else "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(found.pieces), "tokenizer.ggml.scores": list(found.scores),
        "tokenizer.ggml.token_type": list(found.types), "tokenizer.ggml.add_space_prefix": found.prefix,
        "tokenizer.ggml.remove_extra_whitespaces": found.tidy,
    }  # fmt: skip
    if UNKNOWN in found.types:
        keys["tokenizer.ggml.unknown_token_id"] = found.types.index(UNKNOWN)
    return keys | ({"tokenizer.ggml.precompiled_charsmap": found.charsmap} if found.charsmap else {})


def vocabulary_of(tokenizer: ScoredTokenizer) -> Vocabulary:
    """Pieces, scores and types, where they say all that the tokenizer's document says; else a `UserError`."""
    document, model = tokenizer.document, tokenizer.document["model"]
    unigram = model["type"] == "Unigram"
    pieces = list(map(tokenizer.spelled, range(tokenizer.vocab_size)))
    scores = {piece: float(score) for piece, score in model["vocab"]} if unigram else tokenizer.scores_of_ranks()
    added = {entry["id"]: CONTROL if entry.get("special") else USER_DEFINED for entry in document["added_tokens"]}
    added |= dict.fromkeys(tokenizer.byte_ids, BYTE) | ({tokenizer.unknown: UNKNOWN} if tokenizer.unknown is not None else {})
    types = [added.get(i, NORMAL) for i in range(len(pieces))]
    steps = (document.get("normalizer") or {}).get("normalizers") or []
    rules = next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), "")
    found = Vocabulary(
        pieces, [scores.get(piece, 0.0) for piece in pieces], types, unigram, base64.b64decode(rules),
        tidy=any(step.get("content") == "" for step in steps), prefix=any(step.get("type") == "Prepend" for step in steps),
    )  # fmt: skip
    same = found.document("tokenizer.json")
    if (same["normalizer"], None) != (document.get("normalizer"), document.get("pre_tokenizer")) or (
        set(merges_of(same)) != set(merges_of(document))
    ):
        fix = "export with --to hf, or load the tokenizer from its SentencePiece .model"
        why = "its merges or its treatment of spaces are not those of a SentencePiece model"
        raise UserError("GGUF has no words for this tokenizer", where="tokenizer.json", why=why, fix=fix)
    return found


def _bert(tokenizer: WordPiece) -> dict[str, Any]:
    def stored(piece: str) -> str:
        if piece.startswith("[") and piece.endswith("]"):
            return piece
        return piece.removeprefix(INSIDE) if piece.startswith(INSIDE) else SPACE + piece

    vocab = tokenizer.document["model"]["vocab"] | tokenizer.specials
    pieces = sorted(vocab, key=lambda piece: vocab[piece])
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.pre": "default", "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": [stored(piece) for piece in pieces],
        "tokenizer.ggml.token_type": [CONTROL if piece in tokenizer.specials else NORMAL for piece in pieces],
    }  # fmt: skip
    named = {key: tokenizer.configured(name) or SPECIALS[name] for name, key in BERT.items()}
    return keys | {f"tokenizer.ggml.{key}_token_id": vocab[piece] for key, piece in named.items() if piece in vocab}
