"""The training stages where a corpus or a model is unusual: they go on, or refuse before any work is done."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hornbook
from hornbook.errors import UserError
from hornbook.stages.learn import check_model
from hornbook.stages.runs import pretrain_run, sft_run
from hornbook.stages.settings import Recipe, SftRecipe
from hornbook.stages.voice import Silent

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64,
}  # fmt: skip


class Heard(Silent):
    """A voice that remembers what it was told to say."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def recipe(data: Path, out: Path) -> Recipe:
    return Recipe(out=str(out), model=LLAMA, data=str(data), vocab=300, context=64, rows=2, steps=2, warmup=1)


def sentences(count: int, words: int) -> list[str]:
    draw = random.Random(words)
    known = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(80)]
    return [" ".join(draw.choices(known, k=words)) for _ in range(count)]


def tuned(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """Pretrain and fine-tune on the rows; what the stages said."""
    data, heard = folder / "data.jsonl", Heard()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pretrain_run(recipe(data, folder / "run"), heard, "")
    sft_run(SftRecipe(base=str(folder / "run"), steps=2, rows=2, warmup=1), heard, "")
    assert hornbook.load(folder / "run" / "tuned")
    return heard.lines


def test_a_model_that_cannot_train_on_the_recipe_is_refused(tmp_path: Path) -> None:
    good = recipe(tmp_path / "none.txt", tmp_path / "run")
    check_model(good)
    without = {key: value for key, value in LLAMA.items() if key != "max_position_embeddings"}
    for model, why in (
        (LLAMA | {"max_position_embeddings": 63}, "it reads at most 63"),
        (without, "does not say how many"),
        ({**LLAMA, "model_type": "lama"}, "llama"),
        ({**LLAMA, "num_attention_heads": 0}, "impossible"),
    ):
        with pytest.raises(UserError, match=why):
            check_model(replace(good, model=model))


def test_plain_text_becomes_conversations_that_fit(tmp_path: Path) -> None:
    """Whatever the model's context, most passages of a text with ordinary lines fit in pairs."""
    lines = sentences(600, 6)
    said = tuned([{"text": "\n".join(lines[start : start + 10])} for start in range(0, len(lines), 10)], tmp_path)
    counts = [line.split() for line in said if "are longer than" in line]  # "3 of 40 conversations are longer than ..."
    assert all(2 * int(count[0]) < int(count[2]) for count in counts)


def test_text_with_a_paragraph_per_line_becomes_conversations_that_fit(tmp_path: Path) -> None:
    said = tuned([{"text": "\n".join(sentences(3, 150 + number))} for number in range(40)], tmp_path)
    counts = [line.split() for line in said if "are longer than" in line]
    assert all(2 * int(count[0]) < int(count[2]) for count in counts)


def test_short_documents_become_short_conversations(tmp_path: Path) -> None:
    lines = sentences(400, 3)
    assert tuned([{"text": f"{one}\n{two}"} for one, two in zip(lines[::2], lines[1::2], strict=True)], tmp_path)


def test_conversations_that_are_too_long_are_counted_and_said(tmp_path: Path) -> None:
    short, long = sentences(60, 3), sentences(60, 200)
    asked = [{"question": one, "answer": two} for one, two in zip(short[::2], short[1::2], strict=True)]
    rambling = [{"question": one, "answer": "yes"} for one in long]
    said = tuned([*rambling, *asked], tmp_path)
    assert any("conversations are longer than 64 tokens and are left out" in line for line in said)


def test_only_conversations_that_are_too_long_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no conversation fits"):
        tuned([{"question": one, "answer": "yes"} for one in sentences(60, 200)], tmp_path)


def test_pretraining_packs_whole_documents_where_it_is_told_to(tmp_path: Path) -> None:
    data, heard = tmp_path / "data.jsonl", Heard()
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(200, 12)), encoding="utf-8")
    packed = replace(recipe(data, tmp_path / "run"), packing="best-fit")
    pretrain_run(packed, heard, "")
    assert hornbook.load(tmp_path / "run" / "pretrained")
    assert any(re.fullmatch(r"[\d,]+ rows, of which [\d.]+% is padding", line) for line in heard.lines), heard.lines
