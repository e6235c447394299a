"""A tied embedding's one gradient is the sum that autograd makes, and no second one is ever whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hornbook.adapt.tied import one_gradient
from hornbook.batch import Batch
from hornbook.families import build_any
from hornbook.model import Seq2SeqModel, TransformerModel, initialize
from hornbook.train.objective import causal_lm, seq2seq
from tests.reference.tiny import GPT2, LLAMA, TIED, VOCAB, furthest, random_batch, tiny_model

DIM = 16
T5 = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": DIM, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1,
    "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6, "dropout_rate": 0.0, "tie_word_embeddings": True,
}  # fmt: skip


def whole_logits(model: TransformerModel, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch.tokens_bt).flatten(0, 1), batch.targets_bt.flatten(), reduction="sum")


def no_head(model: TransformerModel, batch: Batch) -> torch.Tensor:
    return model.hidden(batch.tokens_bt).square().sum()


def twice(model: TransformerModel, batch: Batch) -> torch.Tensor:
    return causal_lm(model, batch).total + whole_logits(model, batch)


OBJECTIVES: dict[str, Callable[[Any, Batch], torch.Tensor]] = {
    "chunked": lambda model, batch: causal_lm(model, batch).total, "whole": whole_logits, "no head": no_head, "twice": twice
}  # fmt: skip


class Whole(TorchDispatchMode):
    """Counts the new tensors that are as large as the vocabulary's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        whole = isinstance(result, torch.Tensor) and not result.is_sparse and result.numel() == VOCAB * DIM
        self.made += whole and not (func.is_view or func._schema.name.endswith("_") or func is torch.ops.aten.detach.default)
        return result


def gradients(config: dict[str, Any], objective: Callable[[Any, Batch], torch.Tensor], one: bool) -> dict[str, torch.Tensor]:
    model = tiny_model(config)
    for seed in range(2):  # micro-batches add up
        with one_gradient(model) if one else nullcontext():
            loss = objective(model, random_batch(3, 9, seed))
        loss.backward()
    assert all(p.grad is None or p.grad.layout is torch.strided for p in model.parameters())
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("config", [GPT2, TIED, LLAMA], ids=["gpt2", "tied", "untied"])
def test_gradients_are_those_of_autograd_alone(config: dict[str, Any], objective: Callable[[Any, Batch], torch.Tensor]) -> None:
    alone, together = (gradients(config, objective, one) for one in (False, True))
    assert alone.keys() == together.keys() and furthest(alone, together) < 1e-11


def test_two_towers_and_a_head_share_one_too() -> None:
    found = []
    for context in (nullcontext, one_gradient):
        model, batch = initialize(build_any(T5), 0, std=0.2).double(), random_batch(2, 7, 0)
        assert isinstance(model, Seq2SeqModel)
        with context(model):
            loss = seq2seq(model, Batch(batch.tokens_bt, batch.targets_bt, source_bs=random_batch(2, 5, 1).tokens_bt)).total
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(found[0]) > 10 and furthest(*found) < 1e-11


def test_the_second_gradient_is_never_made() -> None:
    made = []
    for context in (nullcontext, one_gradient):
        model, batch = tiny_model(GPT2), random_batch(3, 9, 0)
        with context(model):
            loss = causal_lm(model, batch).total
        with Whole() as count:
            loss.backward()
        made.append(count.made)
    assert made[0] > 0 and made[1] == 0  # the head's was made with the loss


def test_the_model_is_what_it_was_also_after_an_error() -> None:
    model = tiny_model(GPT2)
    stem, head = model.get_submodule("stem.tokens"), model.get_submodule("head.out")
    with pytest.raises(KeyError), one_gradient(model):
        assert head.weight is not stem.weight
        raise KeyError
    assert head.weight is stem.weight and not stem.sparse


@pytest.mark.parametrize("changed", ["frozen", "short", "untied"])
def test_other_weights_are_left_alone(changed: str) -> None:
    model = tiny_model(LLAMA if changed == "untied" else GPT2)
    model.requires_grad_(changed != "frozen")
    model = model.bfloat16() if changed == "short" else model
    stem = model.get_submodule("stem.tokens")
    kept = stem.weight
    with one_gradient(model):
        assert stem.weight is kept and not stem.sparse
