"""Tokenizer files that are damaged or hostile: thousands of seeded mutations end in a tokenizer or in a `UserError`, soon."""

from __future__ import annotations

import copy
import json
import random
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.errors import UserError
from hornbook.text.tokenizer import Tokenizer
from hornbook.text.wordpiece import WordPiece

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


def mutated(raw: bytes, dice: random.Random) -> bytes:
    """Flipped or lost bytes, a part of another kind, or a part lost, moved or doubled."""
    if dice.random() < 0.3 or not raw.startswith(b"{"):
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


def used(load: Callable[[Path], Tokenizer], folder: Path) -> None:
    tok = load(folder)
    ids = tok.encode(TEXT)
    assert all(type(i) is int and 0 <= i < tok.vocab_size for i in ids), "an id is outside the vocabulary"
    names = set(tok.specials.values()) - {getattr(tok, "_unknown", None)}
    assert not names & set(ids), "a text has a special id"
    tok.decode(range(tok.vocab_size)), tok.decode_bytes(ids), tok.fingerprint, tok.end_ids, tok.begin_ids, tok.settings()
    tok.save(folder / "saved")
    tok.render(TALK)


def fuzz(count: int, folder: Path) -> None:
    """Print a JSON line for every fault, and at last what the process took: its worst seconds and its growth in MB."""
    limit, slowest = 0, 0.0
    for number in range(count):
        kind = ("BPE", "BPE", "WordPiece", "vocab.txt")[number % 4]
        dice, whole = random.Random(number), KINDS.setdefault(kind, files(kind) if kind not in KINDS else {})
        changed = dice.choice([*whole, *whole, "both"])
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()
        for name, raw in whole.items():
            (folder / name).write_bytes(mutated(raw, dice) if changed in (name, "both") else raw)
        begin = time.thread_time()
        try:
            used(Tokenizer.load if kind == "BPE" else WordPiece.load, folder)
        except UserError as error:
            if len(str(error)) > 3000:
                print(json.dumps([number, kind, f"an error of {len(str(error))} characters: {str(error)[:200]}"]))
        except BaseException:
            print(json.dumps([number, kind, traceback.format_exc()[-700:]]))
        slowest = max(slowest, time.thread_time() - begin)
        limit = limit or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([slowest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit) >> 10]))


KINDS: dict[str, dict[str, bytes]] = {}


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
