"""Stems: raw input and context -> (x (B, T, D), context), the residual stream and what a layer may know of it.

`TokenStem`: ids (B, T), or embeddings (B, T, D) in their place. `PatchStem`: images (B, C, height, width). `FrameStem`: log-mel
frames (B, mels, frames).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.attention import default_positions
from hornbook.model.mlp import activation
from hornbook.model.spec import Context, Spec, build


@dataclass(frozen=True, kw_only=True)
class TokenStem:
    vocab: int
    positions: int | None = None  # learned absolute positions; None: rope or a bias carries the order
    position_offset: int = 0  # unused rows before position 0 (BART and RoBERTa: 2)
    sinusoidal: bool = False  # fixed positions (Vaswani et al. 2017, section 3.5)
    types: int = 0  # of the texts of a pair (BERT)
    scale: float = 1.0  # of the token embeddings
    norm: Spec | None = None
    dropout: float = 0.0

    def build(self, dim: int) -> TokenStemLayer:
        return TokenStemLayer(self, dim)


class TokenStemLayer(nn.Module):
    def __init__(self, spec: TokenStem, dim: int):
        super().__init__()
        self.spec = spec
        self.tokens = nn.Embedding(spec.vocab, dim)
        self.positions = nn.Embedding(spec.positions + spec.position_offset, dim) if spec.positions else None
        self.types = nn.Embedding(spec.types, dim) if spec.types else None
        self.norm = build(spec.norm, dim)

    def forward(self, inputs: Tensor, ctx: Context) -> tuple[Tensor, Context]:
        spec, x = self.spec, inputs
        if not inputs.is_floating_point():
            x, ctx = self.tokens(inputs), replace(ctx, tokens_bt=inputs)
            if spec.scale != 1.0:
                x = x * torch.tensor(spec.scale, dtype=x.dtype, device=x.device)  # rounded first, as published models do
        places_bt = default_positions(x) if ctx.positions_bt is None else ctx.positions_bt
        if self.types is not None:
            x = x + (self.types.weight[0] if ctx.types_bt is None else self.types(ctx.types_bt))
        if self.positions is not None:
            if ctx.positions_bt is None and x.shape[1] > (spec.positions or 0):
                raise ValueError(f"the model reads at most {spec.positions} tokens at a time: {x.shape[1]}")
            x = x + self.positions(places_bt + spec.position_offset)
        if spec.sinusoidal:
            x = x + sinusoids(places_bt, x.shape[-1]).to(x.dtype)
        return F.dropout(self.norm(x), spec.dropout, self.training), ctx


def sinusoids(positions_bt: Tensor, dim: int) -> Tensor:
    """(B, T, dim): channel 2i is sin(position / 10000^(2i/dim)), channel 2i + 1 its cosine (Vaswani et al. 2017, section 3.5)."""
    frequency = torch.exp(torch.arange(0, dim, 2, device=positions_bt.device) * (-math.log(10_000.0) / dim))
    angle = positions_bt[..., None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


@dataclass(frozen=True, kw_only=True)
class PatchStem:
    """Patches of an image as tokens, a class token in front (Dosovitskiy et al. 2021, equation 1)."""

    image: tuple[int, int]  # height, width
    patch: tuple[int, int]
    channels: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if any(size < cut or size % cut for size, cut in zip(self.image, self.patch, strict=True)):
            raise ValueError(f"image must be a multiple of patch: image={self.image}, patch={self.patch}")

    def build(self, dim: int) -> PatchStemLayer:
        return PatchStemLayer(self, dim)


class PatchStemLayer(nn.Module):
    def __init__(self, spec: PatchStem, dim: int):
        super().__init__()
        self.spec = spec
        count = (spec.image[0] // spec.patch[0]) * (spec.image[1] // spec.patch[1])
        self.patches = nn.Conv2d(spec.channels, dim, spec.patch, stride=spec.patch)
        self.first = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, count + 1, dim))

    def forward(self, image_bchw: Tensor, ctx: Context) -> tuple[Tensor, Context]:
        if image_bchw.shape[1:] != (self.spec.channels, *self.spec.image):
            raise ValueError(f"images must be (B, {self.spec.channels}, {self.spec.image}): {list(image_bchw.shape)}")
        x = self.patches(image_bchw).flatten(2).mT
        x = torch.cat((self.first.expand(len(x), -1, -1), x), dim=1) + self.positions
        return F.dropout(x, self.spec.dropout, self.training), ctx


@dataclass(frozen=True, kw_only=True)
class FrameStem:
    """Two convolutions over log-mel frames, the second halving their number (Radford et al. 2023, section 2.2)."""

    mels: int
    positions: int  # rows of the table of positions, one per two frames
    act: str = "gelu"
    dropout: float = 0.0

    def build(self, dim: int) -> FrameStemLayer:
        return FrameStemLayer(self, dim)


class FrameStemLayer(nn.Module):
    def __init__(self, spec: FrameStem, dim: int):
        super().__init__()
        self.spec, self.act = spec, activation(spec.act)
        self.first = nn.Conv1d(spec.mels, dim, 3, padding=1)
        self.second = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.positions = nn.Embedding(spec.positions, dim)

    def forward(self, frames_bmt: Tensor, ctx: Context) -> tuple[Tensor, Context]:
        """A `padding_bs` of frames becomes one of positions: true where the middle frame of the three is.

        Frames that are padding must be 0: then a row gives what it gives alone.
        """
        if frames_bmt.shape[1] != self.spec.mels or (frames_bmt.shape[2] + 1) // 2 > self.spec.positions:
            limit = f"(B, {self.spec.mels}, at most {2 * self.spec.positions})"
            raise ValueError(f"frames must be {limit}: {list(frames_bmt.shape)}")
        x = self.act(self.first(frames_bmt))
        if ctx.padding_bs is not None:
            x = x.masked_fill(~ctx.padding_bs[:, None], 0)  # as behind the end of a row alone
        x = self.act(self.second(x)).mT
        if ctx.padding_bs is not None:
            ctx = replace(ctx, padding_bs=ctx.padding_bs[:, ::2])
        return F.dropout(x + self.positions(default_positions(x)), self.spec.dropout, self.training), ctx
