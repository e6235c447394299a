"""A mixture of experts the slow way: one token, one expert at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def through(layer: torch.nn.Module, x_nd: Tensor, chosen: list[tuple[int, int, Tensor]]) -> Tensor:
    """sum over (token, expert, weight) of weight * down(silu(gate x) * up x)."""
    rows = [torch.zeros_like(row) for row in x_nd]
    for token, expert, weight in chosen:
        x = x_nd[token]
        gate, up = layer.gate[expert] @ x, layer.up[expert] @ x
        if "gate" in layer.biases:
            gate, up = gate + layer.biases["gate"][expert], up + layer.biases["up"][expert]
        y = layer.down[expert] @ (F.silu(gate) * up)
        rows[token] = rows[token] + weight * (y + layer.biases["down"][expert] if "down" in layer.biases else y)
    return torch.stack(rows)


def top_k(logits_ne: Tensor, top_k: int, *, sigmoid: bool = False, normalize: bool = True) -> list[tuple[int, int, Tensor]]:
    """Each token's best experts and their weights."""
    chosen = []
    for token, logits in enumerate(logits_ne):
        scores = 1 / (1 + torch.exp(-logits)) if sigmoid else torch.exp(logits) / torch.exp(logits).sum()
        best = sorted(range(len(scores)), key=lambda expert: -float(scores[expert]))[:top_k]
        whole = sum(scores[expert] for expert in best) if normalize else 1.0
        chosen += [(token, expert, scores[expert] / whole) for expert in best]
    return chosen
