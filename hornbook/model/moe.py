"""Mixture of experts: x (B, T, D) -> (B, T, D), each token through a few of many feed-forwards, as a router chooses.

y = sum over chosen experts of weight * expert(x) (Shazeer et al. 2017; Fedus et al. 2022). A router is a spec: it turns tokens into
assignments (token, expert, weight), and the layer sorts those by expert, so that each expert is one matrix product over its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.mlp import GatedMLP
from hornbook.model.spec import Context, Spec


@dataclass
class Assignments:
    """A rows, each one token for one expert with one weight. `scores_ne` and `logits_ne` are the router's, where it has any."""

    token_a: Tensor
    expert_a: Tensor
    weight_a: Tensor
    scores_ne: Tensor | None = None
    logits_ne: Tensor | None = None


class Router(Protocol):
    def build(self, dim: int, experts: int) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Each token takes its `top_k` best experts.

    score        softmax over all experts (Mixtral, Qwen) or a sigmoid of each (DeepSeek-V3)
    normalize    the chosen weights sum to one;  scale: what they are then multiplied by
    correction   a bias that only the choice sees, moved from outside to balance the load (Wang et al. 2024)
    groups       experts in so many groups, of which a token may use `top_groups` (DeepSeek-V3)
    balance, z   weights of the balance loss (Fedus et al. 2022, equation 4) and of the router's z-loss (Zoph et al. 2022, eq. 5)
    capacity     an expert takes at most capacity * top_k * tokens / experts tokens, the first ones; None: all (dropless)
    """

    top_k: int
    score: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    bias: bool = False
    correction: bool = False
    groups: int = 1
    top_groups: int = 1
    balance: float = 0.0
    z: float = 0.0
    capacity: float | None = None

    def build(self, dim: int, experts: int) -> nn.Module:
        if not 0 < self.top_k <= experts:
            raise ValueError(f"top_k must be between 1 and the number of experts: top_k={self.top_k}, experts={experts}")
        if self.score not in ("softmax", "sigmoid"):
            raise ValueError(f"score must be 'softmax' or 'sigmoid': {self.score!r}")
        return TopKLayer(self, dim, experts)


class TopKLayer(nn.Module):
    def __init__(self, spec: TopK, dim: int, experts: int):
        super().__init__()
        self.spec, self.experts = spec, experts
        self.out = nn.Linear(dim, experts, bias=spec.bias)
        self.correction: Tensor | None
        self.register_buffer("correction", torch.zeros(experts) if spec.correction else None)

    def forward(self, x_nd: Tensor, ctx: Context) -> Assignments:
        spec, wide = self.spec, torch.promote_types(x_nd.dtype, torch.float32)
        logits_ne = self.out(x_nd).to(wide)
        scores_ne = logits_ne.softmax(-1) if spec.score == "softmax" else logits_ne.sigmoid()
        weight_nk, expert_nk = self.chosen(scores_ne)
        if spec.normalize:
            weight_nk = weight_nk / (weight_nk.sum(-1, keepdim=True) + torch.finfo(wide).tiny)
        weight_nk = weight_nk * spec.scale
        token_nk = torch.arange(len(x_nd), device=x_nd.device)[:, None].expand_as(expert_nk)
        found = Assignments(token_nk.flatten(), expert_nk.flatten(), weight_nk.flatten(), scores_ne, logits_ne)
        return found if spec.capacity is None else self.within_capacity(found)

    def chosen(self, scores_ne: Tensor) -> tuple[Tensor, Tensor]:
        spec, choice_ne = self.spec, scores_ne
        if self.correction is not None:
            choice_ne = choice_ne + self.correction
        if spec.groups > 1:
            choice_ngm = choice_ne.unflatten(-1, (spec.groups, -1))
            best_ng = choice_ngm.topk(2, dim=-1).values.sum(-1)
            allowed_ng = torch.zeros_like(best_ng, dtype=torch.bool).scatter(1, best_ng.topk(spec.top_groups).indices, True)
            choice_ne = choice_ngm.masked_fill(~allowed_ng[..., None], -torch.inf).flatten(1)
        expert_nk = choice_ne.topk(spec.top_k, dim=-1).indices
        return scores_ne.gather(1, expert_nk), expert_nk

    def within_capacity(self, found: Assignments) -> Assignments:
        """A token past its expert's capacity keeps its place and loses its weight, so that shapes do not depend on the data."""
        assert self.spec.capacity is not None
        tokens = len(found.token_a) // self.spec.top_k
        room = max(1, int(self.spec.capacity * self.spec.top_k * tokens / self.experts))
        place_a = F.one_hot(found.expert_a, self.experts).cumsum(0).gather(1, found.expert_a[:, None])[:, 0]
        found.weight_a = found.weight_a.masked_fill(place_a > room, 0)
        return found


@dataclass(frozen=True, kw_only=True)
class ExpertChoice:
    """Each expert takes its best `capacity * tokens / experts` tokens (Zhou et al. 2022), later ones too: not for decoding."""

    capacity: float = 2.0

    def build(self, dim: int, experts: int) -> nn.Module:
        return ExpertChoiceLayer(self, dim, experts)


class ExpertChoiceLayer(nn.Module):
    def __init__(self, spec: ExpertChoice, dim: int, experts: int):
        super().__init__()
        self.spec, self.experts, self.out = spec, experts, nn.Linear(dim, experts, bias=False)

    def forward(self, x_nd: Tensor, ctx: Context) -> Assignments:
        logits_ne = self.out(x_nd).to(torch.promote_types(x_nd.dtype, torch.float32))
        scores_ne = logits_ne.softmax(-1)
        room = min(len(x_nd), max(1, int(self.spec.capacity * len(x_nd) / self.experts)))
        weight_ec, token_ec = scores_ne.mT.topk(room, dim=-1)
        expert_ec = torch.arange(self.experts, device=x_nd.device)[:, None].expand_as(token_ec)
        return Assignments(token_ec.flatten(), expert_ec.flatten(), weight_ec.flatten(), scores_ne, logits_ne)


@dataclass(frozen=True, kw_only=True)
class Hash:
    """A token's id decides its expert, at random and for good (Roller et al. 2021)."""

    vocab: int
    seed: int = 0

    def build(self, dim: int, experts: int) -> nn.Module:
        return HashLayer(self, experts)


class HashLayer(nn.Module):
    def __init__(self, spec: Hash, experts: int):
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        with torch.device("cpu"):  # even where the model is built on the meta device
            table = torch.randperm(spec.vocab, generator=generator) % experts  # as many ids for each expert
        self.table = table.tolist()

    def forward(self, x_nd: Tensor, ctx: Context) -> Assignments:
        if ctx.tokens_bt is None:
            raise ValueError("a hash router needs token ids: embeddings alone cannot be routed")
        expert_a = torch.tensor(self.table, device=x_nd.device)[ctx.tokens_bt].flatten()
        return Assignments(torch.arange(len(x_nd), device=x_nd.device), expert_a, x_nd.new_ones(len(x_nd)))


@dataclass(frozen=True, kw_only=True)
class MoE:
    """experts: how many of `expert`; shared: a feed-forward for every token, behind a sigmoid where `shared_gate` (Qwen2-MoE)."""

    expert: GatedMLP
    experts: int
    router: Router
    shared: Spec | None = None
    shared_gate: bool = False

    def build(self, dim: int) -> MoELayer:
        return MoELayer(self, dim)


class MoELayer(nn.Module):
    """After a forward, `load_e` is each expert's share of the assignments and `losses` the router's own, both without gradient."""

    def __init__(self, spec: MoE, dim: int):
        super().__init__()
        self.spec = spec
        experts, hidden = spec.experts, spec.expert.hidden
        self.router = spec.router.build(dim, experts)
        self.gate = nn.Parameter(torch.empty(experts, hidden, dim))
        self.up = nn.Parameter(torch.empty(experts, hidden, dim))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))
        shapes = {"gate": hidden, "up": hidden, "down": dim} if spec.expert.bias else {}
        self.biases = nn.ParameterDict({name: nn.Parameter(torch.zeros(experts, size)) for name, size in shapes.items()})
        self.shared = spec.shared.build(dim) if spec.shared else None
        self.shared_gate = nn.Linear(dim, 1, bias=False) if spec.shared_gate else None
        self.load_e: Tensor | None = None
        self.losses: dict[str, Tensor] = {}

    @property
    def active_share(self) -> float:
        """The share of the experts' parameters that one token uses."""
        return getattr(self.spec.router, "top_k", 1) / self.spec.experts

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x_nd = x.flatten(0, -2)
        found = self.router(x_nd, ctx)
        weight_a = self.watched(found, ctx)
        order_a = found.expert_a.argsort(stable=True)
        token_a, expert_a = found.token_a[order_a], found.expert_a[order_a]
        count_e = torch.zeros(self.spec.experts, dtype=torch.long, device=x.device).index_add(
            0, expert_a, torch.ones_like(expert_a)
        )
        y_ad = self.through_experts(x_nd[token_a], expert_a, count_e.cumsum(0))
        y_ad = y_ad * weight_a[order_a, None].to(y_ad.dtype)
        y_nd = torch.zeros_like(x_nd).index_add(0, token_a, y_ad)
        y = y_nd.view_as(x)
        if self.shared is not None:
            always = self.shared(x, ctx)
            y = y + (always if self.shared_gate is None else self.shared_gate(x).sigmoid() * always)
        return y

    def through_experts(self, x_ad: Tensor, expert_a: Tensor, ends_e: Tensor) -> Tensor:
        """Rows sorted by expert, each through its own; expert e's rows end at `ends_e[e]`."""

        def product(rows: Tensor, name: str) -> Tensor:
            y = expert_products(rows, getattr(self, name), ends_e)
            return y + self.biases[name][expert_a] if name in self.biases else y

        return product(self.spec.expert.gated(product(x_ad, "gate"), product(x_ad, "up")), "down")

    def watched(self, found: Assignments, ctx: Context) -> Tensor:
        """The weights, with the router's own losses behind them; the figures are left on the layer."""
        share_a = torch.ones_like(found.weight_a, dtype=torch.float32) / len(found.token_a)
        self.load_e = torch.zeros(self.spec.experts, device=share_a.device).index_add(0, found.expert_a, share_a).detach()
        if found.scores_ne is None or found.logits_ne is None:
            return found.weight_a
        balance = balance_loss(found.scores_ne, self.load_e * len(found.token_a) / len(found.scores_ne))
        z = found.logits_ne.logsumexp(-1).square().mean()
        self.losses = {"balance": balance.detach(), "z": z.detach()}
        weights = (getattr(self.spec.router, "balance", 0.0), getattr(self.spec.router, "z", 0.0))
        if ctx.aux_scale is None or not self.training or not any(weights):
            return found.weight_a
        return attached(found.weight_a, (weights[0] * balance + weights[1] * z) * ctx.aux_scale)


@torch.library.custom_op("hornbook::expert_products", mutates_args=())
def expert_products(x_ad: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    """Rows (A, d) sorted by expert -> (A, o): expert e's rows, which end at `ends_e[e]`, times its weight (o, d) transposed."""
    y_ao, start = x_ad.new_empty(len(x_ad), weight_eod.shape[1]), 0
    for weight_od, end in zip(weight_eod, ends_e.tolist(), strict=True):
        torch.mm(x_ad[start:end], weight_od.mT, out=y_ao[start:end])
        start = end
    return y_ao


@expert_products.register_fake
def _(x_ad: Tensor, weight_eod: Tensor, ends_e: Tensor) -> Tensor:
    return x_ad.new_empty(len(x_ad), weight_eod.shape[1])


@torch.library.custom_op("hornbook::expert_gradients", mutates_args=())
def expert_gradients(grad_ao: Tensor, x_ad: Tensor, ends_e: Tensor) -> Tensor:
    """The gradient (E, o, d) of `expert_products` for its weights."""
    grad_eod, start = grad_ao.new_empty(len(ends_e), grad_ao.shape[1], x_ad.shape[1]), 0
    for grad_od, end in zip(grad_eod, ends_e.tolist(), strict=True):
        torch.mm(grad_ao[start:end].mT, x_ad[start:end], out=grad_od)
        start = end
    return grad_eod


@expert_gradients.register_fake
def _(grad_ao: Tensor, x_ad: Tensor, ends_e: Tensor) -> Tensor:
    return grad_ao.new_empty(len(ends_e), grad_ao.shape[1], x_ad.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_ao: Tensor) -> tuple[Tensor, Tensor, None]:
    x_ad, weight_eod, ends_e = ctx.saved_tensors
    grad_ao = grad_ao.contiguous()
    return expert_products(grad_ao, weight_eod.mT, ends_e), expert_gradients(grad_ao, x_ad, ends_e), None


expert_products.register_autograd(_backward, setup_context=_keep)


def balance_loss(scores_ne: Tensor, share_e: Tensor) -> Tensor:
    """E * sum over experts of f_e P_e (Fedus et al. 2022, equation 4): f_e tokens per token given to e, P_e its mean score.

    `scores_ne` must sum to one over the experts (sigmoid scores are scaled to do so). Least where all experts get the same.
    """
    mean_e = (scores_ne / scores_ne.sum(-1, keepdim=True)).mean(0)
    return len(share_e) * (share_e * mean_e).sum()


class _Attached(torch.autograd.Function):
    """x as it is, and a loss that is differentiated whenever x is: layers have no other way to return one."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones((), dtype=grad.dtype, device=grad.device)


def attached(x: Tensor, loss: Tensor) -> Tensor:
    return _Attached.apply(x, loss.to(x.dtype))


@torch.no_grad()
def balance_by_bias(model: nn.Module, rate: float = 1e-3) -> None:
    """After a step: raise the correction of experts with too little load, lower the others' (Wang et al. 2024, algorithm 1)."""
    for layer in (module for module in model.modules() if isinstance(module, MoELayer)):
        correction = getattr(layer.router, "correction", None)
        if correction is not None and layer.load_e is not None:
            correction += rate * torch.sign(1 / len(layer.load_e) - layer.load_e)
