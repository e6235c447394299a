"""Ranks and GPT-2's pair: tiktoken's ids on any text, and the same files out."""

from __future__ import annotations

import base64
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import transformers
from tiktoken_ext import openai_public

from hornbook.errors import UserError
from hornbook.text.tiktoken import merges_of_ranks, write_pair, write_ranks
from hornbook.text.tokenizer import Tokenizer
from tests.reference.scripts import strings

NAMES = ["r50k_base", "cl100k_base", "o200k_base"]


def encoding(file: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in file.read_bytes().splitlines())}
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    return tiktoken.Encoding(**getattr(openai_public, name)())


@pytest.mark.parametrize("name", [*NAMES[:2], pytest.param(NAMES[2], marks=pytest.mark.slow)])
def test_ids_and_specials_are_tiktokens(name: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = data_folder / "tokenizers" / "tiktoken" / f"{name}.tiktoken"
    ours, theirs = Tokenizer.load(file), encoding(file, name, monkeypatch)
    assert ours.vocab_size == theirs.n_vocab
    for text in strings(seed=1, count=10_000):
        ids = ours.encode(text)
        assert ids == theirs.encode_ordinary(text), text
        assert ours.decode(ids) == text
    for special in theirs.special_tokens_set:
        assert theirs.encode(special, allowed_special="all") == [ours.special(special)]
    assert ours.end_ids == (theirs.eot_token,)


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_ranks_are_written_as_they_were(name: str, data_folder: Path, tmp_path: Path) -> None:
    file = data_folder / "tokenizers" / "tiktoken" / f"{name}.tiktoken"
    write_ranks(Tokenizer.load(file), tmp_path / "out.tiktoken")
    assert (tmp_path / "out.tiktoken").read_bytes() == file.read_bytes()


def test_the_ranks_of_gpt2_are_its_merges(data_folder: Path) -> None:
    """Published in both forms: the pair's merges are an answer that the ranks do not hold."""
    folder = data_folder / "tokenizers"
    ranks, pair = Tokenizer.load(folder / "tiktoken" / "r50k_base.tiktoken"), Tokenizer.load(folder / "gpt2")
    assert ranks.fingerprint == pair.fingerprint and ranks.document["model"]["merges"] == pair.document["model"]["merges"]
    assert pair.end_ids == (50256,) and Tokenizer.load(folder / "gpt2" / "vocab.bpe").fingerprint == pair.fingerprint


def test_a_home_trained_vocabulary_has_tiktokens_ids(tmp_path: Path) -> None:
    texts = strings(seed=2, count=400)
    tok = Tokenizer.train(texts, vocab=900, split="gpt2")
    write_ranks(tok, tmp_path / "mine.tiktoken")
    again = Tokenizer.load(tmp_path / "mine.tiktoken", split="gpt2")
    ranks = {tok.token_bytes(i): i for i in range(tok.vocab_size) if tok.token_bytes(i)}
    theirs = tiktoken.Encoding("mine", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    for text in strings(seed=3, count=2000):
        assert tok.encode(text) == again.encode(text) == theirs.encode_ordinary(text)


def test_any_ranks_merge_as_tiktoken_merges_them(tmp_path: Path) -> None:
    """Random vocabularies, most of whose tokens no trainer would make: whole words win, and parts join through later ranks."""
    dice = random.Random(0)
    for n in range(60):
        tokens = {bytes([byte]) for byte in range(256)}
        words = {bytes(dice.choices(b"ab c", k=dice.randrange(2, 6))) for _ in range(dice.randrange(1, 9))}
        ranks = {token: i for i, token in enumerate([*sorted(tokens), *words])}
        merges, _ = merges_of_ranks(ranks)
        assert all(left + right in ranks and left in ranks and right in ranks for left, right in merges)
        theirs = tiktoken.Encoding("any", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
        file = tmp_path / f"{n}.tiktoken"
        file.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
        tok = Tokenizer.load(file, split="gpt2")
        for _ in range(40):
            text = "".join(dice.choices("ab c", k=dice.randrange(1, 12)))
            assert tok.encode(text) == theirs.encode_ordinary(text), (text, words)


@pytest.mark.parametrize(
    ("content", "split", "says"),
    [
        (b"YQ== 0\n", None, "give split=NAME"), (b"YQ== 0\n", "gpt3", "did you mean"), (b"YQ== 0\nYg== 0\n", "gpt2", "same rank"),
        (b"YQ== x\n", "gpt2", "line 1"), (b"YQ 0\n", "gpt2", "line 1"), (b"YQ== 0\n 1\n", "gpt2", "line 2"),
        (b"YQ== 999999999\n", "gpt2", "ranks up to"), (b"YQ== 0\n" + base64.b64encode(bytes(600)) + b" 1\n", "gpt2", "line 2"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_rank_is_named(content: bytes, split: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.tiktoken"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        Tokenizer.load(file, split)


def test_what_tiktoken_would_cut_otherwise_is_refused(tmp_path: Path) -> None:
    tok = Tokenizer.train(["abc abcd bcd cdab ab"] * 9, vocab=266)
    model = {**tok.document["model"], "merges": tok.document["model"]["merges"][::-1]}
    with pytest.raises(UserError, match="other ids"):
        write_ranks(Tokenizer({**tok.document, "model": model}), tmp_path / "out.tiktoken")


def test_the_pair_opens_in_transformers_and_here(tmp_path: Path) -> None:
    tok = Tokenizer.train(strings(seed=4, count=300), vocab=800, split="gpt2", specials=("<|endoftext|>",))
    write_pair(tok, tmp_path)
    with pytest.raises(UserError, match="give split=NAME"):
        Tokenizer.load(tmp_path)
    again = Tokenizer.load(tmp_path, split="gpt2")
    theirs = transformers.GPT2TokenizerFast(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    for text in strings(seed=5, count=1000):
        assert tok.encode(text) == again.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}))
    spaced = Tokenizer.load(tmp_path)
    ids, spans = spaced.encode_offsets("ab cd")
    assert ids == spaced.encode("ab cd") == tok.encode(" ab cd") and spans[0][0] == 0 and spans[-1][1] == 5
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges\.txt"):
        Tokenizer.load(tmp_path)


def test_a_pair_is_cut_as_the_class_in_its_settings_does(tmp_path: Path) -> None:
    """Qwen's: another split, text in the form NFC, and added tokens that are in tokenizer_config.json alone."""
    tok = Tokenizer.train(strings(seed=6, count=300), vocab=800, split="qwen2", specials=())
    write_pair(tok, tmp_path)
    theirs = transformers.Qwen2TokenizerFast(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = {i: {"content": token.content, "special": token.special} for i, token in theirs.added_tokens_decoder.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": added}))
    ours = Tokenizer.load(tmp_path)
    assert ours.normalizer == "NFC" and list(ours.patterns) == list(tok.patterns)
    assert ours.specials == theirs.get_added_vocab() and len(ours.specials) > 0
    for text in strings(seed=7, count=1000):
        assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], text


@pytest.mark.slow
def test_qwen3_as_a_pair_is_qwen3(data_folder: Path, tmp_path: Path) -> None:
    whole = Tokenizer.load(data_folder / "tokenizers" / "qwen3")
    model = whole.document["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    shutil.copy(data_folder / "tokenizers" / "qwen3" / "tokenizer_config.json", tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == whole.fingerprint
