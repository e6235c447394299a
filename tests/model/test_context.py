"""What may not matter, for every family: padding, packing, how a text is cut into calls, what comes later, who is beside."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
import torch
from torch.utils import _pytree as pytree

from hornbook.generation.cache import DenseCache
from hornbook.model import Context, Rope, TransformerModel
from tests.reference.models import CONFIGS, DECODERS, small_model

BOUND = 1e-11
VOCAB = 99
pytestmark = pytest.mark.parametrize("family", DECODERS)


def test_every_family_has_a_small_config(family: str) -> None:
    assert family in CONFIGS


def drawn(family: str, *lengths: int) -> tuple[TransformerModel, list[torch.Tensor]]:
    """A float64 model and a text of ids for each length."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return small_model(family).double(), [torch.randint(VOCAB, (1, n), generator=generator) for n in lengths]


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


def padded(texts: list[torch.Tensor], left: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, padding and positions of a batch; the padding's ids are a word of the vocabulary like any other."""
    width = max(text.shape[1] for text in texts)
    tokens, padding = torch.full((len(texts), width), 7), torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        place = slice(width - text.shape[1], width) if left else slice(0, text.shape[1])
        tokens[row, place], padding[row, place] = text[0], True
    return tokens, padding, (padding.cumsum(-1) - 1).clamp(min=0)


def test_left_padding_changes_nothing(family: str) -> None:
    model, texts = drawn(family, 9, 4, 1)
    tokens, padding, positions = padded(texts, left=True)
    logits = model(tokens, Context(positions_bt=positions, padding_bs=padding))
    for row, text in enumerate(texts):
        assert far(logits[row, -text.shape[1] :], model(text)[0]) < BOUND


def test_right_padding_changes_nothing(family: str) -> None:
    model, texts = drawn(family, 9, 4, 1)
    tokens, padding, _ = padded(texts, left=False)
    for logits in (model(tokens), model(tokens, Context(padding_bs=padding))):
        for row, text in enumerate(texts):
            assert far(logits[row, : text.shape[1]], model(text)[0]) < BOUND


def test_padding_gets_no_gradient_and_gives_none(family: str) -> None:
    model, texts = drawn(family, 9, 4)
    tokens, padding, positions = padded(texts, left=True)
    ctx = Context(positions_bt=positions, padding_bs=padding)
    x = model.stem(tokens, ctx)[0].detach().requires_grad_()
    model.tower(x, ctx)[padding].square().sum().backward()
    assert (x.grad[~padding] == 0).all() and (x.grad[padding] != 0).any() and torch.isfinite(x.grad).all()


def packed(texts: list[torch.Tensor]) -> tuple[torch.Tensor, Context]:
    documents = torch.cat([torch.full_like(text, number) for number, text in enumerate(texts)], 1)
    positions = torch.cat([torch.arange(text.shape[1])[None] for text in texts], 1)
    return torch.cat(texts, 1), Context(positions_bt=positions, documents_bt=documents)


def test_packed_equals_separate(family: str) -> None:
    model, texts = drawn(family, 5, 1, 8)
    logits = model(*packed(texts))
    alone = torch.cat([model(text) for text in texts], 1)
    assert far(logits, alone) < BOUND
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(part.logsumexp(-1).sum(), parameters) for part in (logits, alone))
    assert all(far(a, b) < BOUND * 100 for a, b in zip(ours, theirs, strict=True))


def test_no_gradient_crosses_from_one_document_into_another(family: str) -> None:
    model, texts = drawn(family, 5, 3, 6)
    tokens, ctx = packed(texts)
    x = model.stem(tokens, ctx)[0].detach().requires_grad_()
    middle = ctx.documents_bt == 1
    (gradient,) = torch.autograd.grad(model.tower(x, ctx)[middle].square().sum(), x)
    assert (gradient[~middle] == 0).all() and (gradient[middle] != 0).all(-1).any()


def test_what_comes_later_changes_nothing(family: str) -> None:
    model, (text,) = drawn(family, 10)
    changed = text.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % VOCAB
    assert far(model(text)[:, :6], model(changed)[:, :6]) < BOUND
    x = model.stem(text, Context())[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.tower(x, Context())[:, :6].square().sum(), x)
    assert (gradient[:, 6:] == 0).all() and (gradient[:, 0] != 0).any()


def test_a_row_equals_itself_alone(family: str) -> None:
    model, texts = drawn(family, 7, 7, 7)
    together = model(torch.cat(texts))
    assert all(far(together[row], model(text)[0]) < BOUND for row, text in enumerate(texts))


def in_pieces(model: TransformerModel, tokens: torch.Tensor, cuts: list[int], ctx: Context) -> torch.Tensor:
    cache, found = DenseCache(tokens.shape[1]), []
    for start, end in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        padding = None if ctx.padding_bs is None else ctx.padding_bs[:, :end]
        positions = torch.arange(start, end)[None] if ctx.positions_bt is None else ctx.positions_bt[:, start:end]
        found.append(model(tokens[:, start:end], Context(positions_bt=positions, padding_bs=padding, cache=cache)))
    return torch.cat(found, 1)


@pytest.mark.parametrize("seed", range(6))
def test_a_cache_equals_one_call_however_it_is_cut(family: str, seed: int) -> None:
    dice = random.Random(seed)
    model, texts = drawn(family, 12, 12, 5, 1)
    cuts = [list(range(1, 12)), [], [11]][seed] if seed < 3 else sorted(dice.sample(range(1, 12), dice.randrange(1, 6)))
    plain = torch.cat(texts[:2])
    assert far(in_pieces(model, plain, cuts, Context()), model(plain)) < BOUND
    tokens, padding, positions = padded(texts, left=True)
    ctx = Context(positions_bt=positions, padding_bs=padding)
    found = in_pieces(model, tokens, cuts, ctx)
    assert far(found[padding], model(tokens, ctx)[padding]) < BOUND
    assert torch.isfinite(found).all()


def test_a_context_is_a_tree_of_its_tensors(family: str) -> None:
    rope = Rope(8)
    ctx = Context(
        positions_bt=torch.arange(4)[None], padding_bs=torch.ones(1, 4, dtype=torch.bool), documents_bt=torch.zeros(1, 4),
        rotations={rope: rope.angles(torch.arange(4)[None], torch.float32)}, layer=3,
    )  # fmt: skip
    leaves, shape = pytree.tree_flatten(ctx)
    assert sum(isinstance(leaf, torch.Tensor) for leaf in leaves) == 5
    again = pytree.tree_unflatten(leaves, shape)
    assert all(getattr(again, field.name) is getattr(ctx, field.name) for field in fields(Context) if field.name != "rotations")
    assert again.rotations[rope][0] is ctx.rotations[rope][0]
    moved = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), ctx)
    assert moved.padding_bs.is_meta and moved.rotations[rope][1].is_meta and moved.cache is None and moved.layer == 3
    model, (text,) = drawn(family, 4)
    tokens, ctx = packed([text, text])
    assert torch.equal(model(tokens, ctx), model(tokens, pytree.tree_unflatten(*pytree.tree_flatten(ctx))))
