"""How the next token is drawn: logits (B, V) -> ids (B). Each processor is one function and one field of `Sampling`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """max_tokens: at most so many new ids. temperature 0: always the likeliest. top_k, top_p: only among the likeliest."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or none"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or none"),
        )
        for name, value, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} must be {rule}: {value!r}")


def keep_top_k(logits_bv: Tensor, top_k: int) -> Tensor:
    """All but the `top_k` likeliest set to -inf; ties with the last one stay."""
    least = logits_bv.topk(min(top_k, logits_bv.shape[-1])).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < least, -torch.inf)


def keep_top_p(logits_bv: Tensor, top_p: float) -> Tensor:
    """The fewest likeliest ids whose probability reaches `top_p` (Holtzman et al. 2020), the rest set to -inf."""
    ordered, ids = logits_bv.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    drop = torch.zeros_like(logits_bv, dtype=torch.bool).scatter(-1, ids, before >= top_p)
    return logits_bv.masked_fill(drop, -torch.inf)


def choose(logits_bv: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """The next id of each row (B). Every row draws from its own generator, so neighbours do not matter."""
    if sampling.temperature == 0:
        return logits_bv.argmax(-1)
    logits_bv = logits_bv.float() / max(sampling.temperature, 1e-30)  # below that, float32 overflows
    if sampling.top_k is not None:
        logits_bv = keep_top_k(logits_bv, sampling.top_k)
    if sampling.top_p is not None:
        logits_bv = keep_top_p(logits_bv, sampling.top_p)
    draws = [
        torch.multinomial(row, 1, generator=generator)
        for row, generator in zip(logits_bv.softmax(-1).cpu(), generators, strict=True)
    ]
    return torch.cat(draws).to(logits_bv.device)
