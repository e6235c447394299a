"""What goes in besides ids, against transformers: padding on either side, token types, embeddings, memories, patches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from hornbook.families import Model
from hornbook.model import Context, HiddenHead, PatchStem, TokenStem
from hornbook.model.stem import sinusoids
from tests.reference.published import BERT, CASES, MLM, SEQ2SEQ, Case, inputs_of, loaded, oracle, published

NAMED = {case.name: case for case in CASES}
TEXT = [case for case in CASES if case.auto in ("AutoModelForCausalLM", MLM) and case.model_type != "speech_ctc"]
LENGTHS = (14, 9)


def pair(case: Case) -> tuple[Any, Model]:
    theirs = oracle(case)
    return theirs, loaded(*published(theirs))


def padding_on(left: bool) -> torch.Tensor:
    places = torch.arange(14)
    return torch.stack([places >= 14 - n if left else places < n for n in LENGTHS])


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("case", TEXT, ids=[case.name for case in TEXT])
@torch.no_grad()
def test_padding(case: Case, left: bool) -> None:
    if left and (case.auto == MLM or "dynamic" in case.name):
        pytest.skip("encoders are padded on the right" if case.auto == MLM else "the longest row decides a dynamic rope")
    theirs, ours = pair(case)
    (ids,), padding = inputs_of(case), padding_on(left)
    positions = (padding.cumsum(-1) - 1).clamp(min=0)
    ids = ids.where(padding, getattr(theirs.config, "pad_token_id", None) or 0)
    more = {} if case.model_type in ("bloom", "roberta", "distilbert") else {"position_ids": positions}
    expected = theirs(ids, attention_mask=padding.long(), **more).logits
    found = ours(ids, Context(positions_bt=positions, padding_bs=padding))
    assert (expected - found)[padding].abs().max() < 1e-5


@torch.no_grad()
def test_token_types() -> None:
    theirs, ours = pair(NAMED["bert masked"])
    (ids,) = inputs_of(NAMED["bert masked"])
    types = (torch.arange(14) > 6).long().expand_as(ids)
    expected = theirs(ids, token_type_ids=types).logits
    assert (expected - ours(ids, Context(types_bt=types))).abs().max() < 1e-5
    assert (expected - ours(ids)).abs().max() > 0.01


@pytest.mark.parametrize("case", [case for case in CASES if case.auto == SEQ2SEQ], ids=lambda case: case.name)
@torch.no_grad()
def test_a_padded_source_and_target(case: Case) -> None:
    theirs, ours = pair(case)
    (source, target), padding = inputs_of(case), padding_on(left=False)
    short = torch.arange(target.shape[1]) < torch.tensor([[9], [5]])
    expected = theirs(source, attention_mask=padding.long(), decoder_input_ids=target, decoder_attention_mask=short.long()).logits
    found = ours(source, target, Context(padding_bs=short, memory_padding_bs=padding))
    assert (expected - found)[short].abs().max() < 2e-5
    memory = ours.encode(source, padding)
    assert (memory - theirs.get_encoder()(source, attention_mask=padding.long()).last_hidden_state)[padding].abs().max() < 1e-5
    again = ours.head(ours.hidden(target, Context(padding_bs=short, memory=memory, memory_padding_bs=padding)))
    assert torch.equal(again, found)


@pytest.mark.parametrize("name", ["gpt2", "llama grouped", "bert masked", "bloom"])
@torch.no_grad()
def test_embeddings_in_the_place_of_ids(name: str) -> None:
    theirs, ours = pair(NAMED[name])
    (ids,) = inputs_of(NAMED[name])
    embedded = theirs.get_input_embeddings()(ids) * 1.5
    expected = theirs(inputs_embeds=embedded).logits
    assert (expected - ours(embedded)).abs().max() < 1e-5
    assert torch.equal(ours(ours.stem.tokens(ids)), ours(ids))


@pytest.mark.parametrize("case", [case for case in TEXT if case.auto != MLM], ids=lambda case: case.name)
@torch.no_grad()
def test_the_last_row_alone_is_the_last_row(case: Case) -> None:
    _, ours = pair(case)
    (ids,) = inputs_of(case)
    hidden = ours.hidden(ids)
    assert (ours.head(hidden[:, -1:]) - ours(ids)[:, -1:]).abs().max() < 1e-5


def test_patches_three_ways_and_back() -> None:
    """A convolution, an unfold and einops cut the same patches; fold puts the image together again."""
    torch.manual_seed(0)
    image = torch.randn(10, 3, 224, 224)
    stem = PatchStem(image=(224, 224), patch=(16, 16)).build(768)
    weight, bias = stem.patches.weight.detach(), stem.patches.bias.detach()
    x = stem(image, Context())[0].detach()
    assert x.shape == (10, 197, 768)
    patches = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=16, q=16)
    assert patches.shape == (10, 196, 768)
    unfolded = F.unfold(image, 16, stride=16).mT
    assert torch.equal(patches, unfolded)
    assert (x[:, 1:] - (patches @ weight.flatten(1).T + bias)).abs().max() < 1e-4
    assert torch.equal(F.fold(unfolded.mT, (224, 224), 16, stride=16), image)
    with pytest.raises(ValueError, match="images must be"):
        stem(image[:, :, :200], Context())


def test_sinusoidal_positions_are_the_formula() -> None:
    """Vaswani et al. 2017, section 3.5, and DistilBERT's own table."""
    import math

    found = sinusoids(torch.arange(40)[None], 12)[0]
    for position in (0, 1, 17, 39):
        for i in range(6):
            angle = position / 10_000 ** (2 * i / 12)
            assert abs(float(found[position, 2 * i]) - math.sin(angle)) < 1e-5
            assert abs(float(found[position, 2 * i + 1]) - math.cos(angle)) < 1e-5
    stem = TokenStem(vocab=5, sinusoidal=True).build(12)
    ids = torch.tensor([[1, 4, 4]])
    assert torch.allclose(stem(ids, Context())[0], stem.tokens(ids) + found[:3])


def test_positions_begin_behind_the_offset() -> None:
    """RoBERTa and BART keep two rows of the table unused; the model reads as many tokens as rows are left."""
    _, ours = pair(NAMED["roberta masked"])
    rows = ours.stem.positions.weight
    assert rows.shape[0] == BERT["max_position_embeddings"]
    rows.grad = None
    ours(inputs_of(NAMED["roberta masked"])[0]).sum().backward()
    used = rows.grad.abs().sum(-1) > 0
    assert used.tolist() == [2 <= row < 16 for row in range(len(used))]


def test_a_model_without_a_head_gives_its_hidden_values() -> None:
    _, ours = pair(NAMED["llama grouped"])
    bare = replace(ours.spec, head=HiddenHead(), ties=()).build()
    bare.load_state_dict(ours.state_dict(), strict=False)
    (ids,) = inputs_of(NAMED["llama grouped"])
    assert torch.equal(bare(ids), ours.hidden(ids))
