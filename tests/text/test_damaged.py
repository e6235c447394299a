"""Tokenizer files that are damaged or hostile: thousands of seeded mutations end in a tokenizer or in a `UserError`, soon."""

from __future__ import annotations

import copy
import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hornbook.checkpoint.gguf_write import write_vocabulary
from hornbook.errors import UserError
from hornbook.text.gguf import Metadata
from hornbook.text.gguf_vocabulary import gguf_metadata, gguf_tokenizer
from hornbook.text.published import read_json
from hornbook.text.scored import ScoredTokenizer
from hornbook.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from hornbook.text.tiktoken import write_pair, write_ranks
from hornbook.text.tokenizer import Tokenizer

TEXT = "Hello wörld 123 <|end|> 你好!\n"
TALK = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": " so "}]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"helowrd123!你好", "##" + "e", "hello", "##orld", "ö"]

# What a value may become: every kind of JSON, ids at the edges, text that means something somewhere.
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    1e308,
    "",
    " ",
    "a",
    "\x00",
]
VALUES += [
    "\ud800",
    "é" * 1000,
    "(a|a)*$",
    "(?R)?a",
    "((a{999}){999}){999}",
    "(" * 5000,
    r"(?=ab\K)|a",
    "{{ 'a' * 10 ** 9 }}",
    "{% for",
]
VALUES += [
    [],
    {},
    [[]],
    [None],
    [1],
    ["a"],
    ["a", "b"],
    ["a", "b", "c"],
    {"a": 0},
    {"type": "BPE"},
    {"type": "Sequence"},
    {"content": 1},
]
VALUES += [
    {"type": "Sequence", "pretokenizers": [1]},
    {"type": "Split", "pattern": {"Regex": 3}},
    {"Regex": None},
    {"type": ["BPE"]},
]
VALUES += [[{"name": 1}], [{"name": "default", "template": 3}], {"id": 0, "content": "a"}, [{"id": 0, "content": "a"}] * 3]


def files(kind: str) -> dict[str, bytes]:
    """A small tokenizer's files by name."""
    if kind == "vocab.txt":
        config = {"do_lower_case": True, "cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "model_max_length": 512}
        return {"vocab.txt": "\n".join(PIECES).encode() + b"\n", "tokenizer_config.json": json.dumps(config).encode()}
    if kind == "WordPiece":
        document: Any = {
            "added_tokens": [{"id": i, "content": name, "special": True} for i, name in enumerate(PIECES[:5])],
            "normalizer": {"type": "BertNormalizer", "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {piece: i for i, piece in enumerate(PIECES)}},
        }  # fmt: skip
        config = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        tok = Tokenizer.train([TEXT * 3, "the then there " * 9], vocab=290, split="deepseek")
        document, config = tok.document, {**tok.settings(), "chat_template": TEMPLATE, "add_bos_token": True}
    named = {"tokenizer.json": document, "tokenizer_config.json": config}
    return {name: json.dumps(content, ensure_ascii=False).encode() for name, content in named.items()}


def scored(unigram: bool) -> Vocabulary:
    """Some pieces of SentencePiece's, byte tokens and a piece that is defined by hand."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|end|>", *"▁Helowrd123", "lo", "▁H", "▁He"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, USER_DEFINED, *[NORMAL] * (len(pieces) - 260)]
    charsmap = struct.pack("<I", 4 * 512) + bytes(4 * 512) + b"a\0"
    scores = [-float(i % 97) for i in range(len(pieces))]
    return Vocabulary(pieces, scores, types, unigram, charsmap if unigram else b"", tidy=unigram)


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protobuf message."""
    out = bytearray()
    for number, value in fields:
        out += varint(number << 3 | (0 if isinstance(value, int) else 5 if isinstance(value, float) else 2))
        if isinstance(value, int):
            out += varint(value)
        else:
            out += struct.pack("<f", value) if isinstance(value, float) else varint(len(value)) + value
    return bytes(out)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def model(unigram: bool) -> bytes:
    """The same pieces as SentencePiece's own file."""
    found = scored(unigram)
    rows = zip(found.pieces, found.scores, found.types, strict=True)
    pieces = [(1, message((1, piece.encode()), (2, score), (3, kind))) for piece, score, kind in rows]
    trainer = message((3, 1 if unigram else 2), (35, 1), (41, 1), (42, 2))
    return message(*pieces, (2, trainer), (3, message((2, found.charsmap), (3, 1), (4, int(unigram)), (5, 1))))


def other(kind: str) -> dict[str, bytes]:
    """The same for the kinds that are not told by a tokenizer.json of byte-level BPE or WordPiece."""
    if kind.startswith("SentencePiece"):
        unigram = kind.endswith("unigram")
        if ".model" in kind:
            return {"tokenizer.model": model(unigram)}
        return {"tokenizer.json": json.dumps(scored(unigram).document("")).encode(), "chat_template.jinja": TEMPLATE.encode()}
    tok = Tokenizer.train([TEXT * 3, "the then there " * 9], vocab=290, split="gpt2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "pair":
            write_pair(tok, folder)
            config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "chat_template": TEMPLATE}
            config["added_tokens_decoder"] = {"290": {"content": "<|x|>", "special": True}}
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        elif kind == "ranks":
            write_ranks(tok, folder / "mine.tiktoken")
            (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        else:
            wanted = {"gpt2": tok, "llama": scored(False), "t5": scored(True), "bert": None}[kind.split()[-1]]
            if isinstance(wanted, Vocabulary):
                wanted = ScoredTokenizer(wanted.document(""))
            if wanted is None:
                (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
                wanted = Tokenizer.load(folder)
                (folder / "vocab.txt").unlink()
            if kind.startswith("GGUF keys"):
                keys = {key: list(value) if isinstance(value, bytes) else value for key, value in gguf_metadata(wanted).items()}
                (folder / "keys.json").write_text(json.dumps(keys), encoding="utf-8")
            else:
                write_vocabulary(wanted, folder / "vocabulary.gguf")
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def mutated(raw: bytes, dice: random.Random) -> bytes:
    """Flipped or lost bytes, a part of another kind, or a part lost, moved or doubled."""
    if dice.random() < 0.3 or not raw.startswith(b'{"'):
        data = bytearray(raw)
        for _ in range(dice.choice([1, 1, 1, 3, 30])):
            at = dice.randrange(len(data))
            data[at : at + dice.choice([0, 1, 1, 9])] = bytes([dice.choice([dice.randrange(256), *b'"{}[]:,0-\n\\'])])
        return bytes(data[: dice.randrange(len(data))] if dice.random() < 0.2 else data)
    document = json.loads(raw)
    for _ in range(dice.choice([1, 1, 2, 5])):
        part, key = dice.choice(places(document, dice))
        value = copy.deepcopy(dice.choice([dice.choice(VALUES), dice.choice(places(document, dice))[0]]))
        change = dice.randrange(4)
        if change == 0:
            del part[key]
        elif change == 1 and isinstance(part, dict):
            part[dice.choice(["a", "", "\ud800", "Ġ", "<|end|>", "type", "id"])] = value
        else:
            part[key] = value
        if not document:
            break
    text = json.dumps(document)
    if dice.random() < 0.02:
        text = text.replace("null", "[" * dice.choice([100, 100_000]), 1)
    if dice.random() < 0.02:
        text = text.replace(": 1", ": " + "9" * 5000, 1)
    return text.encode()


def places(document: Any, dice: random.Random) -> list[tuple[Any, Any]]:
    """Where a part may be changed; of a long list or vocabulary only one place, or nothing else would be met."""
    found: list[tuple[Any, Any]] = []
    stack = [document]
    while stack:
        part = stack.pop()
        keys = list(part) if isinstance(part, dict) else list(range(len(part))) if isinstance(part, list) else []
        for key in keys if len(keys) <= 30 else [dice.choice(keys)]:
            found.append((part, key))
            stack.append(part[key])
    return found


def load(kind: str) -> Callable[[Path], Tokenizer]:
    if kind.startswith("GGUF keys"):
        return lambda folder: gguf_tokenizer(Metadata("keys", dict(known_to_gguf(folder / "keys.json"))))
    if kind == "ranks":
        return lambda folder: Tokenizer.load(folder, split="gpt2")
    return Tokenizer.load


def known_to_gguf(file: Path) -> Iterator[tuple[str, Any]]:
    """What of a JSON object a GGUF file could say."""
    for key, value in read_json(file).items():
        if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
            yield key, np.array(value)
        elif isinstance(value, str | int | float) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            yield key, value


def used(load: Callable[[Path], Tokenizer], folder: Path) -> None:
    tok = load(folder)
    ids = tok.encode(TEXT)
    assert all(type(i) is int and 0 <= i < tok.vocab_size for i in ids), "an id is outside the vocabulary"
    names = {i for i in tok.specials.values() if not tok.token_bytes(i)}  # what was defined by hand is text
    assert not names - {getattr(tok, "unknown", None), getattr(tok, "_unknown", None)} & set(ids), "a text has a special id"
    tok.decode(range(tok.vocab_size)), tok.decode_bytes(ids), tok.fingerprint, tok.end_ids, tok.begin_ids, tok.settings()
    tok.save(folder / "saved")
    tok.render(TALK)


def fuzz(count: int, folder: Path) -> None:
    """Print a JSON line for every fault, and at last what the process took: its worst seconds and its growth in MB."""
    limit, slowest, kinds = 0, 0.0, {kind: (other if kind in OTHERS else files)(kind) for kind in KINDS}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        dice, whole = random.Random(number), kinds[kind]
        changed = dice.choice([*whole, *whole, "both"])
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()
        for name, raw in whole.items():
            (folder / name).write_bytes(mutated(raw, dice) if changed in (name, "both") else raw)
        begin = time.thread_time()
        try:
            used(load(kind), folder)
        except UserError as error:
            if len(str(error)) > 3000:
                print(json.dumps([number, kind, f"an error of {len(str(error))} characters: {str(error)[:200]}"]))
        except BaseException:
            print(json.dumps([number, kind, traceback.format_exc()[-700:]]))
        slowest = max(slowest, time.thread_time() - begin)
        limit = limit or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([slowest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit) >> 10]))


OTHERS = (
    "SentencePiece BPE", "SentencePiece unigram", "SentencePiece .model", "SentencePiece .model unigram", "pair", "ranks",
    *(f"GGUF{keys} {name}" for keys in ("", " keys") for name in ("gpt2", "llama", "t5", "bert")),
)  # fmt: skip
KINDS = ("BPE", "BPE", "WordPiece", "vocab.txt", *OTHERS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_changed_is_read(kind: str, tmp_path: Path) -> None:
    for name, raw in (other if kind in OTHERS else files)(kind).items():
        (tmp_path / name).write_bytes(raw)
    tok = load(kind)(tmp_path)
    assert kind in ("WordPiece", "vocab.txt") or "bert" in kind or "Hello" in tok.decode(tok.encode("Hello"))


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_end_in_a_tokenizer_or_in_an_error_that_speaks(count: int, tmp_path: Path) -> None:
    """In a process of its own, whose memory is its own too."""
    code = "import pathlib, runpy, sys; runpy.run_path(sys.argv[1])['fuzz'](int(sys.argv[2]), pathlib.Path(sys.argv[3]))"
    run = [sys.executable, "-c", code, __file__, str(count), str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    *faults, last = map(json.loads, done.stdout.splitlines())
    assert not faults, "\n".join(str(fault[2]) for fault in faults[:20])
    seconds, megabytes = last
    assert seconds < 2 and megabytes < 200
