"""Mixtures of experts against one token at a time, transformers' losses, and what routing must keep."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from hornbook.model import Block, Context, ExpertChoice, GatedMLP, Hash, LMHead, MoE, Residual, TokenStem, TopK, Tower, Transformer
from hornbook.model.moe import MoELayer, balance_by_bias, balance_loss, expert_products
from tests.reference import moe as slow

DIM, HIDDEN, EXPERTS, TOKENS = 6, 5, 4, 11
EXPERT = GatedMLP(HIDDEN)


def layer_of(router: Any, seed: int = 0, **settings: Any) -> MoELayer:
    layer = MoE(**{"expert": EXPERT, "experts": EXPERTS, "router": router, **settings}).build(DIM).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def tokens(seed: int = 1) -> Tensor:
    return torch.randn(1, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
def test_token_choice_is_a_loop_over_tokens(top_k: int, normalize: bool, score: str, biased: bool) -> None:
    expert = replace(EXPERT, bias=biased)
    layer = layer_of(TopK(top_k=top_k, score=score, normalize=normalize, bias=biased), expert=expert)
    x = tokens().requires_grad_()
    y = layer(x, Context())
    chosen = slow.top_k(layer.router.out(x[0]), top_k, sigmoid=score == "sigmoid", normalize=normalize)
    expected = slow.through(layer, x[0], chosen)
    assert (y[0] - expected).abs().max() < 1e-12
    wanted = [x, *layer.parameters()]
    direction = torch.randn(y.shape, dtype=torch.float64)
    ours = torch.autograd.grad((y * direction).sum(), wanted, allow_unused=True)
    theirs = torch.autograd.grad((expected * direction[0]).sum(), wanted, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        zero = torch.zeros(())
        assert ((zero if a is None else a) - (zero if b is None else b)).abs().max() < 1e-11


def test_the_products_gradient_by_finite_differences() -> None:
    x, weight = torch.randn(7, 3, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    ends = torch.tensor([2, 2, 6, 7])  # the second expert has no rows
    assert torch.autograd.gradcheck(
        lambda x, weight: expert_products(x, weight, ends), (x.requires_grad_(), weight.requires_grad_())
    )


def test_one_expert_is_the_dense_feed_forward() -> None:
    layer, dense = layer_of(TopK(top_k=1), experts=1), EXPERT.build(DIM).double()
    dense.load_state_dict({f"{name}.weight": getattr(layer, name)[0] for name in ("gate", "up", "down")})
    assert (layer(tokens(), Context()) - dense(tokens(), Context())).abs().max() < 1e-12


@pytest.mark.parametrize("router", [TopK(top_k=2), TopK(top_k=3, score="sigmoid", correction=True), ExpertChoice()])
def test_the_order_of_experts_changes_nothing(router: Any) -> None:
    layer, order = layer_of(router), torch.tensor([2, 0, 3, 1])
    moved = layer_of(router)
    with torch.no_grad():
        for name in ("gate", "up", "down"):
            getattr(moved, name).copy_(getattr(layer, name)[order])
        moved.router.out.weight.copy_(layer.router.out.weight[order])
    assert (layer(tokens(), Context()) - moved(tokens(), Context())).abs().max() < 1e-12


def test_every_token_is_conserved() -> None:
    """Experts that give back what they get, with weights that sum to one, give back every token."""
    layer = layer_of(TopK(top_k=2))
    layer.through_experts = lambda x_ad, expert_a, ends_e: x_ad  # type: ignore[method-assign]
    assert (layer(tokens(), Context()) - tokens()).abs().max() < 1e-12
    assert layer.load_e is not None and abs(float(layer.load_e.sum()) - 1) < 1e-6


def test_capacity_drops_the_last_ones() -> None:
    """Room for one token per expert: its first one keeps its weight, later ones get zero from it."""
    router = TopK(top_k=2, capacity=EXPERTS / (2 * TOKENS))
    layer, x = layer_of(router), tokens()
    seen, kept = set(), []
    for token, expert, weight in slow.top_k(layer.router.out(x[0]), 2):
        if expert not in seen:
            kept.append((token, expert, weight))
        seen.add(expert)
    assert (layer(x, Context())[0] - slow.through(layer, x[0], kept)).abs().max() < 1e-12
    roomy = layer_of(replace(router, capacity=float(EXPERTS)))
    assert torch.equal(roomy(x, Context()), layer_of(TopK(top_k=2))(x, Context()))


def test_expert_choice_gives_every_expert_the_same_load() -> None:
    layer, x = layer_of(ExpertChoice(capacity=1.5)), tokens()
    scores = layer.router.out(x[0]).softmax(-1)
    room = int(1.5 * TOKENS / EXPERTS)
    chosen = [(int(t), e, scores[t, e]) for e in range(EXPERTS) for t in scores[:, e].argsort(descending=True)[:room]]
    assert (layer(x, Context())[0] - slow.through(layer, x[0], chosen)).abs().max() < 1e-12
    assert layer.load_e is not None and torch.allclose(layer.load_e, torch.full((EXPERTS,), 1 / EXPERTS))


def test_hash_routing_goes_by_the_id() -> None:
    layer, x = layer_of(Hash(vocab=40)), tokens()
    ids = torch.randint(40, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    table = layer.router.table
    assert set(Counter(table).values()) == {10}
    chosen = [(token, table[int(ids[0, token])], torch.tensor(1.0)) for token in range(TOKENS)]
    assert (layer(x, Context(tokens_bt=ids))[0] - slow.through(layer, x[0], chosen)).abs().max() < 1e-12
    assert layer_of(Hash(vocab=40)).router.table == table != layer_of(Hash(vocab=40, seed=1)).router.table
    with pytest.raises(ValueError, match="needs token ids"):
        layer(x, Context())


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_balance_loss_is_transformers(top_k: int) -> None:
    logits = torch.randn(50, EXPERTS, dtype=torch.float64)
    share = F.one_hot(logits.topk(top_k).indices, EXPERTS).sum((0, 1)) / 50
    expected = load_balancing_loss_func((logits,), EXPERTS, top_k)
    assert abs(float(balance_loss(logits.softmax(-1), share) - expected)) < 1e-6  # theirs in float32
    layer = layer_of(TopK(top_k=top_k))
    layer(tokens(), Context())
    found = load_balancing_loss_func((layer.router.out(tokens()[0]),), EXPERTS, top_k)
    assert abs(float(layer.losses["balance"] - found)) < 1e-6
    z = layer.router.out(tokens()[0]).exp().sum(-1).log().square().mean()
    assert abs(float(layer.losses["z"] - z)) < 1e-9


def test_the_balance_loss_is_least_where_all_get_the_same() -> None:
    even = torch.full((8, EXPERTS), 1 / EXPERTS)
    assert abs(float(balance_loss(even, torch.full((EXPERTS,), 1 / EXPERTS))) - 1) < 1e-6
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).repeat(8, 1)
    assert float(balance_loss(skewed, torch.tensor([1.0, 0.0, 0.0, 0.0]))) > 2


def test_attached_losses_reach_the_router_and_nothing_else() -> None:
    """The gradient with the router's own losses is the gradient without, and that of the losses by themselves."""
    router = TopK(top_k=2, balance=0.3, z=0.05)
    layer, x, scale = layer_of(router), tokens(), torch.tensor(7.0)
    share = F.one_hot(layer.router.out(x[0]).topk(2).indices, EXPERTS).sum((0, 1)) / TOKENS

    def by_hand() -> Tensor:
        logits = layer.router.out(x[0])
        return scale * (0.3 * balance_loss(logits.softmax(-1), share) + 0.05 * logits.logsumexp(-1).square().mean())

    def gradients(loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(layer.parameters(), found, strict=True)]

    layer.train()
    plain, alone = gradients(layer(x, Context()).square().sum()), gradients(by_hand())
    both = gradients(layer(x, Context(aux_scale=scale)).square().sum())
    assert torch.equal(layer(x, Context()), layer(x, Context(aux_scale=scale)))
    for a, b, c in zip(both, plain, alone, strict=True):
        assert (a - (b + c)).abs().max() < 1e-5 * max(1.0, float(b.abs().max()))
    assert max(float(c.abs().max()) for c in alone) > 0.1
    layer.eval()
    assert all(torch.equal(a, b) for a, b in zip(gradients(layer(x, Context(aux_scale=scale)).square().sum()), plain, strict=True))


def busiest(balance: float, bias_rate: float) -> float:
    """The largest load after training a small model to tell 16 words apart, its router begun with a favourite."""
    torch.manual_seed(0)
    router = TopK(top_k=1, normalize=False, balance=balance, correction=bias_rate > 0)
    block = Block(Residual(MoE(expert=GatedMLP(16), experts=EXPERTS, router=router)))
    model = Transformer(stem=TokenStem(vocab=16), tower=Tower(16, (block,)), head=LMHead(vocab=16)).build()
    layer = next(module for module in model.modules() if isinstance(module, MoELayer))
    with torch.no_grad():
        for name in ("gate", "up", "down"):
            nn.init.normal_(getattr(layer, name), std=0.3)
        layer.router.out.weight.copy_(0.3 * torch.randn(EXPERTS, 16))
        model.stem.tokens.weight[:, 0] += 2.0
        layer.router.out.weight[0, 0] += 2.0
    optimizer, loads = torch.optim.Adam(model.parameters(), lr=0.01), []
    for step in range(300):
        ids = torch.randint(16, (1, 64), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(ids, Context(aux_scale=torch.tensor(1.0)))[0], (ids[0] * 5 + 3) % 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if bias_rate:
            balance_by_bias(model, bias_rate)
        assert layer.load_e is not None
        loads.append(float(layer.load_e.max()))
    assert math.isfinite(float(loss))
    return sum(loads[-50:]) / 50


def test_routing_collapses_without_a_remedy_and_balances_with_either() -> None:
    assert busiest(0.0, 0.0) > 0.9
    assert busiest(0.1, 0.0) < 0.5
    assert busiest(0.0, 0.02) < 0.5


def test_impossible_routers_are_refused() -> None:
    for router, message in ((TopK(top_k=5), "top_k=5, experts=4"), (TopK(top_k=1, score="tanh"), "'tanh'")):
        with pytest.raises(ValueError, match=message):
            layer_of(router)
