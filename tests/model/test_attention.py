"""Attention against explicit loops in float64, and rows that may see nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.generation.cache import DenseCache
from hornbook.model import ALiBi, Attention, BucketBias, Context, PerHead, RMSNorm, Rope, Tower
from hornbook.model.attention import AttentionLayer, Scores, attend, attention_weights
from hornbook.model.bias import slopes
from hornbook.model.block import Block, Residual
from tests.reference.attention import MaySee, attention_layer, weighted_values

BATCH, LENGTH, DIM = 2, 6, 12


def drawn_context(dice: random.Random, causal: bool, window: int | None) -> tuple[Context, list[list[int]], MaySee]:
    """A random subset of positions, padding, documents and a prefix, and in plain words who may see whom."""
    positions = [list(range(LENGTH))] * BATCH
    padding = [[True] * LENGTH] * BATCH
    documents, prefix = [[0] * LENGTH] * BATCH, [0] * BATCH
    given = {name: dice.random() < 0.5 for name in ("positions", "padding", "documents", "prefix")}
    if given["positions"]:
        positions = [sorted(dice.sample(range(50), LENGTH)) for _ in range(BATCH)]
    if given["padding"]:
        padding = [[dice.random() < 0.6 for _ in range(LENGTH)] for _ in range(BATCH)]
    if given["documents"]:
        documents = [sorted(dice.choices(range(3), k=LENGTH)) for _ in range(BATCH)]

    if given["prefix"]:
        prefix = [dice.choice(row) + 1 for row in positions]

    def may_see(b: int, t: int, s: int) -> bool:
        before = positions[b][s] <= positions[b][t] or not causal or positions[b][s] < prefix[b]
        return (
            before
            and (window is None or positions[b][t] - positions[b][s] < window)
            and padding[b][s]
            and documents[b][s] == documents[b][t]
        )

    ctx = Context(
        positions_bt=torch.tensor(positions) if given["positions"] else None,
        padding_bs=torch.tensor(padding) if given["padding"] else None,
        documents_bt=torch.tensor(documents) if given["documents"] else None,
        prefix_b=torch.tensor(prefix) if given["prefix"] else None,
    )
    return ctx, positions, may_see


def layer_in(tower_rope: Rope | None, spec: Attention, ctx: Context, x: torch.Tensor) -> Context:
    """The context as the tower hands it to its layers."""
    if tower_rope is None:
        return ctx
    positions_bt = torch.arange(x.shape[1])[None] if ctx.positions_bt is None else ctx.positions_bt
    return replace(ctx, rotations={tower_rope: tower_rope.angles(positions_bt, x.dtype)})


@pytest.mark.parametrize("case", range(48))
def test_a_layer_equals_explicit_loops(case: int) -> None:
    dice = random.Random(case)
    heads, kv_heads = [(4, 4), (4, 2), (4, 1), (3, 3), (1, 1), (6, 3)][case % 6]
    causal, with_rope, with_norm, biased = (dice.random() < 0.6 for _ in range(4))
    rope, softcap = Rope(4, theta=100.0) if with_rope else None, 1.5 if dice.random() < 0.3 else None
    window, sinks, slanted = dice.choice([None, 1, 3]) if causal else None, dice.random() < 0.3, dice.random() < 0.3
    spec = Attention(
        heads=heads, kv_heads=dice.choice([kv_heads, None]) if heads == kv_heads else kv_heads, head_dim=4, causal=causal,
        rope=rope, qk_norm=PerHead(RMSNorm(1e-3)) if with_norm else None, qkv_bias=biased, out_bias=biased,
        scale=dice.choice([None, 0.3]), window=window, softcap=softcap, sinks=sinks, bias=ALiBi() if slanted else None,
    )  # fmt: skip
    torch.manual_seed(case)
    layer = spec.build(DIM).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    ctx, positions, may_see = drawn_context(dice, causal, window)
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64, requires_grad=True)
    y = layer(x, layer_in(rope, spec, ctx, x))

    def change(b: int, h: int, t: int, s: int, score: torch.Tensor) -> torch.Tensor:
        score = softcap * torch.tanh(score / softcap) if softcap else score
        return score - slopes(heads)[h] * (positions[b][t] - positions[b][s]) if slanted else score

    expected = attention_layer(
        dict(layer.named_parameters()), x, heads, kv_heads, may_see, theta=100.0 if rope else None, positions=positions,
        norm_eps=1e-3 if with_norm else None, scale=spec.scale, change=change,
    )  # fmt: skip
    assert (y - expected).abs().max() < 1e-12
    wanted = [x, *layer.parameters()]
    direction = torch.randn_like(y)
    ours = torch.autograd.grad((y * direction).sum(), wanted, allow_unused=True)
    theirs = torch.autograd.grad((expected * direction).sum(), wanted, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        zero = torch.zeros(())
        assert ((zero if a is None else a) - (zero if b is None else b)).abs().max() < 1e-11


def test_the_default_call_is_the_masked_call() -> None:
    """No positions takes the kernel's own causal path; naming 0 .. T-1 builds the mask. Both say the same."""
    torch.manual_seed(0)
    layer = Attention(heads=4, kv_heads=2, head_dim=4).build(DIM).double()
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    named = Context(positions_bt=torch.arange(LENGTH)[None])
    assert (layer(x, Context()) - layer(x, named)).abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(kv_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = torch.rand(2, 1, 5, 3) < 0.5
    mask[:, :, 1], mask[0, :, 4], mask[:, :, 0] = False, False, True
    q, k, v = (
        torch.randn(2, length, heads, 8, dtype=dtype, requires_grad=True)
        for length, heads in ((5, 4), (3, kv_heads), (3, kv_heads))
    )
    for name, how in {
        "kernel": Scores(mask), "softcap": Scores(mask, softcap=2.0),
        "bias": Scores(mask, bias=torch.randn(1, 4, 5, 3, dtype=dtype)), "sinks": Scores(mask, sinks=torch.randn(4, dtype=dtype)),
    }.items():  # fmt: skip
        check_blind_rows(name, how, q, k, v, mask)


def check_blind_rows(name: str, how: Scores, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> None:
    q.grad = k.grad = v.grad = None
    y = attend(q, k, v, how)
    assert (y[:, 1] == 0).all() and (y[0, 4] == 0).all()
    y.square().sum().backward()
    assert all(torch.isfinite(part.grad).all() for part in (q, k, v))
    assert (q.grad[:, 1] == 0).all()
    if name == "kernel" and q.dtype == torch.float64:
        expected = weighted_values(q, k, v, lambda b, t, s: bool(mask[b, 0, t, s]))
        assert (y - expected).abs().max() < 1e-14


@pytest.mark.parametrize("bias", [None, ALiBi(), BucketBias(buckets=4, max_distance=5)])
def test_the_weights_written_out_are_the_kernels(bias: ALiBi | BucketBias | None) -> None:
    torch.manual_seed(0)
    layer = Attention(heads=4, kv_heads=2, head_dim=4, bias=bias).build(DIM).double()
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    for ctx in (Context(), Context(padding_bs=torch.rand(BATCH, LENGTH) < 0.5)):
        q, k, v, how = layer.looks(x, ctx)
        weights = attention_weights(q, k, how)
        assert weights.shape == (BATCH, 4, LENGTH, LENGTH)
        values = torch.einsum("bhts,bshk->bthk", weights, v.repeat_interleave(2, 2))
        assert (values - attend(q, k, v, how)).abs().max() < 1e-14


def test_cross_attention_looks_at_the_memory_alone() -> None:
    torch.manual_seed(0)
    layer = Attention(heads=2, head_dim=4, causal=False, cross=True).build(DIM).double()
    x, memory = (torch.randn(BATCH, length, DIM, dtype=torch.float64) for length in (LENGTH, 3))
    padding = torch.tensor([[True, False, True], [True, True, True]])
    y = layer(x, Context(memory=memory, memory_padding_bs=padding, padding_bs=torch.zeros(BATCH, LENGTH, dtype=torch.bool)))
    q, k, v = (part(source).unflatten(-1, (2, 4)) for part, source in ((layer.q, x), (layer.k, memory), (layer.v, memory)))
    expected = layer.o(weighted_values(q, k, v, lambda b, t, s: bool(padding[b, s])).flatten(-2))
    assert (y - expected).abs().max() < 1e-13
    with pytest.raises(ValueError, match="needs a memory"):
        layer(x, Context())


def test_dropout_is_of_weights_and_of_training_alone() -> None:
    torch.manual_seed(0)
    for extra in ({}, {"softcap": 3.0}, {"bias": ALiBi()}):
        layer = Attention(heads=2, head_dim=4, dropout=0.5, **extra).build(DIM).double()
        x = torch.randn(1, LENGTH, DIM, dtype=torch.float64)
        plain = layer.eval()(x, Context())
        layer.train()
        drawn = torch.stack([layer(x, Context()) for _ in range(1000)])
        assert drawn.std(0).max() > 0.01
        assert (drawn.mean(0) - plain).abs().max() < 6 * drawn.std(0).max() / 1000**0.5


def dropping(kind: Any, dropout: float = 0.3) -> AttentionLayer:
    layer = Attention(heads=4, head_dim=4, kv_heads=2, dropout=dropout, dropout_kind=kind).build(DIM).double()
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("kind", ["weights", "keys"])
def test_either_dropout_leaves_the_mean_as_it_is(kind: str) -> None:
    layer, x, draws = dropping(kind), torch.randn(1, LENGTH, DIM, dtype=torch.float64), 4000
    many = layer(x.expand(draws, -1, -1), Context())
    away = (many.mean(0) - layer.eval()(x, Context())[0]).abs() / (many.std(0) / draws**0.5)
    assert away.max() < 4.5 and many.std(0).min() > 0  # 72 values, each a normal's: 4.5 sigma is one in 2,000 runs
    assert torch.equal(layer(x, Context()), dropping(kind).eval()(x, Context()))


def test_a_dropped_key_gives_nothing_to_any_query_of_its_head() -> None:
    """Beside the weights written out, whose columns are taken out one by one."""
    layer, x = dropping("keys"), torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    torch.manual_seed(5)
    y = layer(x, Context())
    torch.manual_seed(5)
    kept_bsg1 = torch.nn.functional.dropout(torch.ones(BATCH, LENGTH, 2, 1, dtype=torch.float64), 0.3)
    q, k, v, how = layer.eval().looks(x, Context())
    weights_bhts = attention_weights(q, k, how)
    for b, head, s in np.ndindex(BATCH, 4, LENGTH):
        weights_bhts[b, head, :, s] *= kept_bsg1[b, s, head // 2, 0]
    theirs = torch.einsum("bhts,bshk->bthk", weights_bhts, v.repeat_interleave(2, 2)).flatten(-2)
    torch.testing.assert_close(y, layer.o(theirs))
    assert 0 < (kept_bsg1 == 0).sum() < kept_bsg1.numel()


@pytest.mark.parametrize(("kind", "fast"), [("weights", False), ("keys", True)])
def test_a_dropout_of_keys_keeps_the_fastest_kernel(kind: str, fast: bool) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        dropping(kind)(torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64), Context())
    assert any("flash_attention" in event.name for event in seen.events()) == fast


def test_a_row_of_padding_alone_gives_zeros_and_leaves_gradients_finite() -> None:
    torch.manual_seed(0)
    for causal in (True, False):
        layer = Attention(heads=4, kv_heads=2, head_dim=4, causal=causal).build(DIM)
        padding = torch.tensor([[True] * LENGTH, [False] * LENGTH, [False] * (LENGTH - 1) + [True]])
        x = torch.randn(3, LENGTH, DIM, requires_grad=True)
        y = layer(x, Context(padding_bs=padding))
        assert (y[1] == 0).all() and (not causal or (y[2, :-1] == 0).all())
        y.square().sum().backward()
        assert torch.isfinite(x.grad).all() and all(torch.isfinite(part.grad).all() for part in layer.parameters())
        assert (x.grad[1] == 0).all()


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="dropout_kind must be weights or keys: 'rows'"):
        Attention(heads=1, head_dim=1, dropout_kind="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="heads=4, kv_heads=3"):
        Attention(heads=4, kv_heads=3, head_dim=4)
    for name in ("heads", "kv_heads", "head_dim"):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1: -1"):
            Attention(**{"heads": 4, "kv_heads": 4, "head_dim": 4, name: -1})


def test_kv_shape_is_what_the_cache_receives() -> None:
    spec = Attention(heads=6, kv_heads=2, head_dim=4)
    layer, cache = spec.build(DIM), DenseCache(LENGTH)
    layer(torch.randn(1, LENGTH, DIM), Context(cache=cache))
    assert isinstance(layer, AttentionLayer)
    assert layer.kv_shape() == tuple(cache.slots[0].k_bsgk.shape[2:]) == tuple(cache.slots[0].v_bsgk.shape[2:])


def test_documents_and_a_cache_are_refused_together() -> None:
    layer = Attention(heads=1, head_dim=4).build(DIM)
    with pytest.raises(ValueError, match="documents_bt and cache"):
        layer(torch.randn(1, 2, DIM), Context(documents_bt=torch.zeros(1, 2), cache=DenseCache(2)))


def test_layers_with_different_ropes_get_their_own() -> None:
    """A tower of two ropes equals two layers run by hand, each with its own angles."""
    torch.manual_seed(0)
    ropes = [Rope(4, theta=10.0), Rope(4, theta=1000.0)]
    specs = [Attention(heads=2, head_dim=4, rope=rope) for rope in ropes]
    tower = Tower(DIM, tuple(Block(Residual(spec)) for spec in specs)).build().double()
    x = torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    y = x
    for block, rope in zip(tower.blocks, ropes, strict=True):
        weights = dict(block.attn.op.named_parameters())
        y = y + attention_layer(weights, y, 2, 2, lambda b, t, s: s <= t, theta=rope.theta, positions=[list(range(LENGTH))])
    assert (tower(x, Context()) - y).abs().max() < 1e-12
