"""The small parts against their formulas written out: norms, feed-forwards, residuals, stems."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hornbook.model import (
    MLP,
    Block,
    Chunked,
    Context,
    GatedMLP,
    LayerNorm,
    LMHead,
    Residual,
    RMSNorm,
    TokenStem,
    Tower,
    Transformer,
)
from hornbook.model.mlp import ACTIVATIONS
from tests.reference.live import LiveBytes

DIM = 6
CTX = Context()


@dataclass(frozen=True)
class Times:
    """A part whose effect on a formula is plain: x * factor, then + shift."""

    factor: float
    shift: float = 0.0

    def build(self, dim: int) -> nn.Module:
        return _TimesLayer(self)


class _TimesLayer(nn.Module):
    def __init__(self, spec: Times):
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        return x * self.spec.factor + self.spec.shift


def stream() -> Tensor:
    return torch.randn(2, 3, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("filled", list(itertools.product([False, True], repeat=3)))
def test_three_norm_slots(filled: tuple[bool, bool, bool]) -> None:
    """x -> outer(x + post(op(pre(x)))), every slot empty or filled. No two of these maps commute, so their order shows."""
    op, pre, post, outer = Times(2, 1), Times(3, 5), Times(7, 11), Times(13, 17)
    slots = [slot if fill else None for slot, fill in zip((pre, post, outer), filled, strict=True)]
    layer = Residual(op, *slots).build(DIM)
    x = stream()
    inner = 3 * x + 5 if filled[0] else x
    inner = 2 * inner + 1
    inner = 7 * inner + 11 if filled[1] else inner
    expected = 13 * (x + inner) + 17 if filled[2] else x + inner
    assert (layer(x, CTX) - expected).abs().max() < 1e-12


def test_published_orders_of_norms() -> None:
    """Pre-norm (Llama), post-norm (BERT), sandwich (Gemma) and norm after the part (OLMo 2) with real norms."""
    x, norm, op = stream(), RMSNorm(1e-6), Times(0.5, 0.25)

    def rms(y: Tensor) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def part(y: Tensor) -> Tensor:
        return 0.5 * y + 0.25

    for residual, expected in (
        (Residual(op, pre=norm), x + part(rms(x))),
        (Residual(op, outer=norm), rms(x + part(x))),
        (Residual(op, pre=norm, post=norm), x + rms(part(rms(x)))),
        (Residual(op, post=norm), x + rms(part(x))),
    ):
        assert (residual.build(DIM).double()(x, CTX) - expected).abs().max() < 1e-12


def test_a_block_is_attention_then_feed_forward_and_a_tower_its_blocks_then_its_norm() -> None:
    x, first, second = stream(), Residual(Times(2)), Residual(Times(3, 1))
    assert torch.equal(Block(first).build(DIM)(x, CTX), 3 * x)
    tower = Tower(DIM, (Block(first, second), Block(second)), Times(10)).build()
    y = 3 * x
    y = y + 3 * y + 1
    y = y + 3 * y + 1
    assert (tower(x, CTX) - 10 * y).abs().max() < 1e-11


def test_layer_norm_and_rms_norm() -> None:
    x = stream()
    for spec in (LayerNorm(1e-3), RMSNorm(1e-3)):
        norm = spec.build(DIM).double()
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.copy_(torch.randn_like(parameter))
        for row, found in zip(x.flatten(0, 1).tolist(), norm(x).flatten(0, 1).tolist(), strict=True):
            mean = sum(row) / DIM if isinstance(spec, LayerNorm) else 0.0
            spread = math.sqrt(sum((value - mean) ** 2 for value in row) / DIM + 1e-3)
            bias = norm.bias.tolist() if isinstance(spec, LayerNorm) else [0.0] * DIM
            for value, weight, shift, y in zip(row, norm.weight.tolist(), bias, found, strict=True):
                assert abs((value - mean) / spread * weight + shift - y) < 1e-12


FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_feed_forwards(act: str) -> None:
    torch.manual_seed(0)
    x = stream()
    for spec in (MLP(5, act), MLP(5, act, bias=False), GatedMLP(5, act), GatedMLP(5, act, bias=True)):
        layer = spec.build(DIM).double()
        weights = dict(layer.named_parameters())
        assert all((name.replace("weight", "bias") in weights) == spec.bias for name in weights)

        def linear(name: str, y: Tensor, weights: dict[str, Tensor] = weights) -> Tensor:
            return torch.einsum("btd,fd->btf", y, weights[f"{name}.weight"]) + weights.get(f"{name}.bias", torch.zeros(()))

        opened = linear("gate" if isinstance(spec, GatedMLP) else "up", x)
        hidden = torch.tensor([FORMULAS[act](value) for value in opened.flatten().tolist()], dtype=torch.float64).view_as(opened)
        hidden = hidden * linear("up", x) if isinstance(spec, GatedMLP) else hidden
        assert (layer(x, CTX) - linear("down", hidden)).abs().max() < 1e-12


def test_an_unknown_activation_names_the_near_one() -> None:
    with pytest.raises(ValueError, match="'sulu'.*did you mean 'silu'"):
        MLP(4, "sulu").build(DIM)


def test_a_token_stem_adds_learned_positions() -> None:
    torch.manual_seed(0)
    stem = TokenStem(vocab=11, positions=8, norm=Times(2)).build(DIM)
    tokens = torch.tensor([[3, 3, 10]])
    rows, places = stem.tokens.weight, stem.positions.weight
    expected = torch.stack([rows[3] + places[0], rows[3] + places[1], rows[10] + places[2]])
    assert torch.equal(stem(tokens, CTX)[0][0], 2 * expected)
    moved = stem(tokens, Context(positions_bt=torch.tensor([[5, 0, 7]])))[0][0]
    assert torch.equal(moved, 2 * torch.stack([rows[3] + places[5], rows[3] + places[0], rows[10] + places[7]]))
    with pytest.raises(ValueError, match="at most 8 tokens at a time: 9"):
        stem(torch.zeros(1, 9, dtype=torch.long), CTX)
    plain = TokenStem(vocab=11).build(DIM)
    assert torch.equal(plain(tokens, CTX)[0], plain.tokens.weight[tokens])


def test_forward_is_head_of_hidden() -> None:
    torch.manual_seed(0)
    spec = Transformer(stem=TokenStem(vocab=11), tower=Tower(DIM, (Block(Residual(MLP(5))),)), head=LMHead(vocab=11, bias=True))
    model, tokens = spec.build(), torch.tensor([[1, 2, 3]])
    hidden = model.hidden(tokens)
    assert hidden.shape == (1, 3, DIM)
    weights = model.state_dict()
    expected = hidden @ weights["head.out.weight"].T + weights["head.out.bias"]
    assert (model(tokens) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("op", [MLP(64), GatedMLP(64)])
def test_a_chunked_feed_forward_is_the_whole_one_in_less_memory(op: MLP | GatedMLP) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, DIM, dtype=torch.float64, requires_grad=True)
    whole = op.build(DIM).double()
    peaks = {}
    for size in (1, 2, 3, 5, 12, 100):
        chunked = Chunked(op, size).build(DIM).double()
        chunked.op.load_state_dict(whole.state_dict())
        assert (chunked(x, CTX) - whole(x, CTX)).abs().max() < 1e-14
        ours, theirs = (torch.autograd.grad(layer(x, CTX).square().sum(), x)[0] for layer in (chunked, whole))
        assert (ours - theirs).abs().max() < 1e-12
        with torch.no_grad(), LiveBytes() as live:
            chunked(x, CTX)
        peaks[size] = live.peak
    assert peaks[1] < peaks[3] < peaks[12] == peaks[100] and peaks[1] < peaks[12] / 3
    with pytest.raises(ValueError, match="size must be at least 1: 0"):
        Chunked(op, 0)


def test_dropout_is_of_training_alone_and_keeps_the_mean() -> None:
    x = stream()
    for spec in (Residual(Times(2), dropout=0.5), Residual(MLP(32, dropout=0.5)), Residual(GatedMLP(32, dropout=0.5))):
        torch.manual_seed(0)
        layer = spec.build(DIM).double()
        plain = layer.eval()(x, CTX)
        layer.train()
        drawn = torch.stack([layer(x, CTX) for _ in range(2000)]).detach()
        assert drawn.std(0).min() > 0
        assert ((drawn.mean(0) - plain).abs() / (drawn.std(0) / 2000**0.5)).max() < 5
