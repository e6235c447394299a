"""Every trainable parameter in exactly one group, whatever the family."""

from __future__ import annotations

import pytest
from torch import nn

from hornbook.families import build, build_any
from hornbook.optim.groups import parameter_groups
from tests.reference.published import CASES, Case, oracle, published
from tests.reference.tiny import LLAMA, TIED, tiny_model

families = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@families
def test_each_parameter_is_in_one_group(case: Case) -> None:
    model = build_any(published(oracle(case))[0])
    groups = parameter_groups(model)
    grouped = [*groups.matrices, *groups.embeddings, *groups.vectors]
    assert len({id(parameter) for parameter in grouped}) == len(grouped)
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}


@families
def test_groups_are_what_their_names_say(case: Case) -> None:
    """By the name and type of the layer that holds a parameter."""
    model = build_any(published(oracle(case))[0])
    groups, kind = parameter_groups(model), dict[int, str]()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            outside = isinstance(module, nn.Embedding) or name.startswith("head.") or "stem" in name
            matrix = parameter.ndim == 3 or (isinstance(module, nn.Linear) and parameter is module.weight)
            group = "vectors" if parameter.ndim < 2 else "embeddings" if outside else "matrices" if matrix else "vectors"
            kind.setdefault(id(parameter), group)
    for group in ("matrices", "embeddings", "vectors"):
        assert {id(parameter) for parameter in getattr(groups, group)} == {key for key, value in kind.items() if value == group}


def test_a_tied_head_counts_once_and_as_the_embedding() -> None:
    tied, apart = build(TIED), build(LLAMA)
    assert parameter_groups(tied).embeddings == [tied.stem.tokens.weight]
    assert [id(p) for p in parameter_groups(apart).embeddings] == [id(apart.stem.tokens.weight), id(apart.head.out.weight)]


def test_what_is_frozen_is_left_out() -> None:
    model = tiny_model()
    model.stem.requires_grad_(False)
    model.tower.blocks[0].requires_grad_(False)
    groups = parameter_groups(model)
    grouped = {id(parameter) for parameter in [*groups.matrices, *groups.embeddings, *groups.vectors]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert grouped < {id(parameter) for parameter in model.parameters()}
