"""Rows against tokens, with a published tokenizer and with small ones where each way of not fitting is planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from hornbook.errors import UserError
from hornbook.plan.vocabulary import vocabulary

SMALL = {"model": {"vocab": {"a": 0, "b": 1, "<s>": 2}}, "added_tokens": [{"id": 2, "content": "<s>"}, {"id": 3, "content": "<e>"}]}
LISTED = {"model": {"vocab": [["a", -1.0], ["b", -2.0], ["<s>", 0.0]]}, "added_tokens": SMALL["added_tokens"]}


def of(rows: int, document: dict[str, Any] = SMALL, config: dict[str, Any] | None = None) -> Any:
    return vocabulary(rows, document, config or {}, "tokenizer.json")


def test_qwen_has_more_rows_than_tokens(data_folder: Path) -> None:
    folder = data_folder / "tokenizers" / "qwen3"
    document, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = vocabulary(151936, document, config, "here")
    assert found.base == theirs.get_vocab_size(with_added_tokens=False) == 151643
    assert found.base + found.added == theirs.get_vocab_size(with_added_tokens=True)
    assert found.spare == sum(theirs.id_to_token(i) is None for i in range(151936))
    assert "151,643 base" in found.explained() and "multiple of 128" in found.explained()


@pytest.mark.parametrize("document", [SMALL, LISTED])
def test_a_row_for_each_token(document: dict[str, Any]) -> None:
    found = of(4, document)
    assert (found.base, found.added, found.spare) == (3, 1, 0)  # <s> is of the base: counted once
    assert "every row is a token's" in found.explained()


def test_spare_rows_are_called_padding_only_where_they_are_round() -> None:
    assert "multiple" not in of(5).explained() and "one row stands for no token" in of(5).explained()
    assert "12 rows stand for no token" in of(16).explained() and "multiple of 16" in of(16).explained()
    holes = of(16, config={"added_tokens_decoder": {"9": {"content": "<x>"}}})
    assert (holes.added, holes.spare) == (2, 11)


def test_a_token_past_the_last_row_is_named() -> None:
    with pytest.raises(UserError, match="(?s)'<e>' has id 3, and the embedding has 3 rows.*1 of its 4 tokens.*4 rows"):
        of(3)
    with pytest.raises(UserError, match="'<x>' has id 9"):
        of(5, config={"added_tokens_decoder": {"9": {"content": "<x>"}}})


@pytest.mark.parametrize(
    "document",
    [{}, {"model": 3}, {"model": {"vocab": {"a": "b"}}}, {"model": {"vocab": {}}}, {"model": {"vocab": []}, "added_tokens": [{}]}],
)
def test_a_vocabulary_that_cannot_be_read(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="(?s)tokenizer.*Fix:"):
        of(4, document)
