"""The weight rules: read in both directions they lose nothing, and every misfit is named."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch

from hornbook.errors import UserError
from hornbook.families import FAMILIES, build, family
from hornbook.families.weights import TRANSPOSED, Table, from_published, rule, to_published
from tests.reference.models import DECODERS, small_config
from tests.reference.published import CASES, inputs_of, loaded, oracle, published

RULES = (
    rule("embed", "stem.tokens"),
    rule("head", "head.out"),
    rule("h.{i}.attn.weight", "blocks.{i}.q", "blocks.{i}.k", "blocks.{i}.v", form=TRANSPOSED),
    rule("h.{i}.attn.bias", "blocks.{i}.q_bias", "blocks.{i}.k_bias", "blocks.{i}.v_bias"),
    rule("h.{i}.out", "blocks.{i}.o", form=TRANSPOSED),
    rule("h.{i}.mask"),
)
families = pytest.mark.parametrize("name", DECODERS)


def toy(layers: int = 12) -> dict[str, torch.Tensor]:
    """Ours; k and v are narrower than q, so that no cut can be taken for another."""
    generator = torch.Generator().manual_seed(0)
    ours = {"stem.tokens": (7, 4), "head.out": (7, 4)}
    for i in range(layers):
        ours |= {f"blocks.{i}.{x}": (rows, 4) for x, rows in (("q", 6), ("k", 3), ("v", 2), ("o", 4))}
        ours |= {f"blocks.{i}.{x}_bias": (rows,) for x, rows in (("q", 6), ("k", 3), ("v", 2))}
    return {name: torch.randn(shape, generator=generator) for name, shape in ours.items()}


def shapes(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in ours.items()}


def test_a_rule_says_exactly_where_each_number_goes() -> None:
    ours = toy()
    published = to_published(RULES, ours)
    assert set(published) == {"embed", "head", *(f"h.{i}.{x}" for i in range(12) for x in ("attn.weight", "attn.bias", "out"))}
    for i in range(12):
        whole = published[f"h.{i}.attn.weight"]
        assert whole.shape == (4, 11) and whole.is_contiguous()  # (in, out)
        for x, place in (("q", slice(0, 6)), ("k", slice(6, 9)), ("v", slice(9, 11))):
            assert torch.equal(whole[:, place], ours[f"blocks.{i}.{x}"].T)
            assert torch.equal(published[f"h.{i}.attn.bias"][place], ours[f"blocks.{i}.{x}_bias"])
        assert torch.equal(published[f"h.{i}.out"], ours[f"blocks.{i}.o"].T)


def test_there_and_back() -> None:
    ours = toy()
    back = from_published(RULES, to_published(RULES, ours), shapes(ours), [], "here")
    assert back.keys() == ours.keys() and all(torch.equal(back[name], value) for name, value in ours.items())


def test_a_named_tensor_without_weight_is_left_out() -> None:
    ours = toy()
    published = {**to_published(RULES, ours), "h.3.mask": torch.ones(5, 5)}
    assert from_published(RULES, published, shapes(ours), [], "here").keys() == ours.keys()


def test_only_the_tied_may_be_absent() -> None:
    ours = toy()
    published = to_published(RULES, ours)
    del published["head"]
    assert from_published(RULES, published, shapes(ours), ["head.out"], "here").keys() == ours.keys() - {"head.out"}
    with pytest.raises(UserError, match="1 weights are missing, the first: 'head'(.|\n)*Where: here(.|\n)*Fix:"):
        from_published(RULES, published, shapes(ours), [], "here")


def test_our_weight_that_no_rule_names_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="'adapter.a'"):
        to_published(RULES, {**toy(), "adapter.a": torch.zeros(1)})


@pytest.mark.parametrize("name", ["blocks.0.q", "embed.", "xembed", "h.a.out", "h..out", "h.1.out.x", "H.1.out", "h.1xout"])
def test_a_rule_fits_whole_names_alone(name: str) -> None:
    ours = toy()
    with pytest.raises(UserError, match="no rule names") as caught:
        from_published(RULES, {**to_published(RULES, ours), name: torch.zeros(1)}, shapes(ours), [], "here")
    assert repr(name) in str(caught.value)


def table(name: str) -> Table:
    return FAMILIES[name].weights(small_config(name))


def published_of(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Size]]:
    model = build(small_config(name, tie_word_embeddings=False))
    ours = {key: value.detach() for key, value in model.state_dict().items()}
    return to_published(family(model.config).weights(model.config), ours), shapes(ours)


@families
def test_each_missing_weight_is_named(name: str) -> None:
    published, expected = published_of(name)
    for key in published:
        rest = {other: value for other, value in published.items() if other != key}
        with pytest.raises(UserError, match="missing(.|\n)*Where: the folder(.|\n)*Fix:") as caught:
            from_published(table(name), rest, expected, [], "the folder")
        assert repr(key) in str(caught.value)


@families
def test_each_weight_of_a_wrong_shape_is_named(name: str) -> None:
    published, expected = published_of(name)
    for key, value in published.items():
        fewer, more = (value[:-1], value[..., :-1], value.flatten()[:3]), (torch.cat((value, value)), value.flatten()[0])
        for wrong in (*fewer, *more, value[None], value[..., None], value.unflatten(-1, (-1, 2))):  # the last hold as many numbers
            with pytest.raises(UserError, match="Where: the folder(.|\n)*Fix:") as caught:
                from_published(table(name), {**published, key: wrong}, expected, [], "the folder")
            assert repr(key) in str(caught.value)


@families
def test_no_two_weights_share_a_name(name: str) -> None:
    """Each of ours comes from one published weight, and each number of ours stands in the published ones exactly once."""
    published, expected = published_of(name)
    assert sum(value.numel() for value in published.values()) == sum(shape.numel() for shape in expected.values())
    numbered, count = {}, 0
    for key, value in published.items():
        numbered[key] = torch.arange(count, count + value.numel()).view(value.shape)
        count += value.numel()
    ours = from_published(table(name), numbered, expected, [], "memory")
    assert torch.equal(torch.cat([value.flatten() for value in ours.values()]).sort().values, torch.arange(count))


def test_older_spellings_of_published_files_are_read() -> None:
    """GPT-2's own upload has no prefix and keeps masks; BERT's first ones say gamma and beta, and hold two heads."""
    for name, respelled in (
        ("gpt2", lambda key: key.removeprefix("transformer.")),
        ("bert masked", lambda key: re.sub(r"(LayerNorm\.)weight", r"\1gamma", re.sub(r"(LayerNorm\.)bias", r"\1beta", key))),
        ("bert pooler", lambda key: f"bert.{key}"),
    ):
        case = next(case for case in CASES if case.name == name)
        config, tensors = published(oracle(case))
        older = {respelled(key): value for key, value in tensors.items()}
        assert older.keys() != tensors.keys()
        if name == "gpt2":
            older |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32) for layer in range(3)}
        else:
            older |= {"cls.seq_relationship.weight": torch.zeros(2, 32), "cls.seq_relationship.bias": torch.zeros(2)}
        inputs = inputs_of(case)
        assert torch.equal(loaded(config, older)(*inputs), loaded(config, tensors)(*inputs))
