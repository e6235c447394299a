"""Activations that are computed again give the same gradients, to the bit, and are not kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hornbook.adapt.recompute import DEAR, KINDS, recompute
from hornbook.optim.build import build_optimizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import GPT2, LLAMA, Given, furthest, random_batch, tiny_model, weights

DROPPING = {**GPT2, "resid_pdrop": 0.2, "attn_pdrop": 0.1, "embd_pdrop": 0.1}
MIXTURE = {
    **LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1,
    "output_router_logits": True, "sliding_window": None,
}  # fmt: skip


class Products(TorchDispatchMode):
    """Counts the dear products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = Counter[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.runs[func] += func in DEAR
        return func(*args, **(kwargs or {}))


def step(config: dict[str, Any], kind: str) -> tuple[dict[str, torch.Tensor], int, int]:
    """A step's gradients, the bytes that autograd keeps for them, and how many dear products ran."""
    model, batch = tiny_model(config).train(), random_batch(3, 16, 1)
    recompute(model, kind)
    torch.manual_seed(7)
    kept: dict[int, int] = {}
    with Products() as products:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.update({x.data_ptr(): x.nbytes}) or x, lambda x: x):
            total = causal_lm(model, batch).total
        total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values()), products.runs.total()


@pytest.mark.parametrize("config", [LLAMA, DROPPING, MIXTURE], ids=["llama", "gpt2 with dropout", "mixtral with its balance loss"])
def test_gradients_are_the_same_and_less_is_kept(config: dict[str, Any]) -> None:
    plain, kept, products = step(config, "none")
    for kind in ("blocks", "selective"):
        found, less, more = step(config, kind)
        assert furthest(found, plain) == 0 and len(found) == len(plain)
        assert less < 0.6 * kept
        assert more == products if kind == "selective" else more > products


def test_none_undoes_it() -> None:
    model = tiny_model()
    recompute(model, "blocks")
    assert all("forward" in vars(block) for block in model.tower.blocks)
    recompute(model, "none")
    assert not any("forward" in vars(block) for block in model.tower.blocks)


def test_training_ends_with_the_same_weights() -> None:
    found = []
    for kind in KINDS:
        model = tiny_model(DROPPING)
        recompute(model, kind)
        torch.manual_seed(3)
        optimizer = build_optimizer(model, "adamw", 0.01)
        fit(model, Given([random_batch(2, 8, n) for n in range(6)]), causal_lm, optimizer, lambda step: 1.0, Run(steps=6))
        found.append(weights(model))
    assert furthest(found[0], found[1]) == furthest(found[0], found[2]) == 0


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="selective"):
        recompute(tiny_model(), "selectiv")
