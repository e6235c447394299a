"""GPT-2 at its published size: parameters, initial weights, the first loss, one batch learnt by heart."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from hornbook.families import build
from hornbook.model import initialize
from hornbook.optim.build import build_optimizer
from tests.reference.models import small_config
from tests.reference.published_configs import PUBLISHED

GPT2 = PUBLISHED["gpt2"].config


def test_the_published_shape() -> None:
    """Radford et al. 2019: 124,439,808 parameters, the head's those of the embedding; the first loss is ln 50257 = 10.82."""
    model = initialize(build(GPT2), 0).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808
    assert model.head.out.weight.data_ptr() == model.stem.tokens.weight.data_ptr()
    block = model.tower.blocks[5]
    for weight, spread in (
        (model.stem.tokens.weight, 0.02), (block.attn.op.q.weight, 0.02), (block.ffn.op.up.weight, 0.02),
        (block.attn.op.o.weight, 0.02 / math.sqrt(24)), (block.ffn.op.down.weight, 0.02 / math.sqrt(24)),
    ):  # fmt: skip
        assert abs(float(weight.detach().std()) / spread - 1) < 0.01
    ids = torch.randint(50257, (1, 129), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = float(F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:]))
    assert abs(math.log(50257) - 10.82) < 0.01 and abs(loss - 10.82) < 0.3


def test_one_batch_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    model = initialize(build(small_config("gpt2", resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)), 0)
    ids = torch.randint(99, (4, 17))
    optimizer = build_optimizer(model, "adamw", 0.01, weight_decay=0.0)
    for _ in range(150):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.05
