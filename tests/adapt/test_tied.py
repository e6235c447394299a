"""Gradients of tied embeddings by rows are the whole ones, and dense where the optimizer sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hornbook.adapt.tied import rows_of_tied_embeddings
from hornbook.train.objective import causal_lm
from tests.reference.tiny import GPT2, LLAMA, TIED, furthest, random_batch, tiny_model

BATCHES = [random_batch(3, 9, seed) for seed in range(2)]


def gradients(config: dict[str, Any], by_rows: bool) -> dict[str, torch.Tensor]:
    model = tiny_model(config)
    if by_rows:
        rows_of_tied_embeddings(model)
    for batch in BATCHES:  # micro-batches add up
        causal_lm(model, batch).total.backward()
    assert all(p.grad is not None and p.grad.layout is torch.strided for p in model.parameters())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("config", [GPT2, TIED, LLAMA], ids=["gpt2", "tied", "untied"])
def test_gradients_are_the_same(config: dict[str, Any]) -> None:
    assert furthest(gradients(config, False), gradients(config, True)) < 1e-12


def test_a_head_that_takes_the_whole_logits_gives_the_same_too() -> None:
    model, batch = tiny_model(TIED), BATCHES[0]
    rows_of_tied_embeddings(model)
    F.cross_entropy(model(batch.tokens_bt).flatten(0, 1), batch.targets_bt.flatten(), reduction="sum").backward()
    found = model.stem.tokens.weight.grad
    model = tiny_model(TIED)
    causal_lm(model, batch).total.backward()
    torch.testing.assert_close(found, model.stem.tokens.weight.grad)


def test_only_what_is_tied_to_the_head_is_changed() -> None:
    for config, expected in ((LLAMA, []), (TIED, ["stem.tokens"]), (GPT2, ["stem.tokens"])):
        model = tiny_model(config)
        rows_of_tied_embeddings(model)
        assert [name for name, m in model.named_modules() if isinstance(m, nn.Embedding) and m.sparse] == expected
