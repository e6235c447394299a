"""A published config.json with a field missing, unknown, extra or impossible, for every family."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers

from hornbook.errors import UserError
from hornbook.families import FAMILIES, build_any
from tests.reference.published import CASES, Case, oracle, published

cases = pytest.mark.parametrize("case", [case for case in CASES if case.model_type != "speech_ctc"], ids=lambda case: case.name)
# Without them the field beside them means something else, or an old checkpoint's meaning differs from today's default.
PAIRED = {"num_key_value_heads", "sliding_window", "num_local_experts", "original_max_position_embeddings"}


@cache
def config_of(case: Case) -> dict[str, Any]:
    return published(oracle(case))[0]


def spec_of(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return build_any(config).spec


@cases
def test_a_missing_field_is_named_or_means_what_it_means_to_transformers(case: Case) -> None:
    config, needed = config_of(case), set()
    # transformers' Phi-3 config has an end token past these few words, and refuses itself without this one.
    for name in config.keys() - {"model_type", "architectures", "pad_token_id", *PAIRED}:
        rest = {key: value for key, value in config.items() if key != name}
        try:
            ours = spec_of(rest)
        except UserError as error:
            assert repr(name) in str(error) and "config.json" in str(error) and "Fix:" in str(error)
            needed.add(name)
            continue
        theirs = transformers.AutoConfig.for_model(**rest).to_dict() | {"architectures": config["architectures"]}
        assert ours == spec_of(theirs), name
    assert len(needed) >= 4


@cases
def test_an_extra_field_changes_nothing(case: Case) -> None:
    config = config_of(case)
    assert spec_of({**config, "_name_or_path": "x", "a_field_of_tomorrow": [1]}) == spec_of(config)


@cases
def test_an_impossible_value_is_refused(case: Case) -> None:
    """Each number of the config as text, as nothing and below zero: built, or refused with what and how."""
    config = config_of(case)
    for name, value in config.items():
        for wrong in ("many", None, -1, [], 10**12) if isinstance(value, int) and not isinstance(value, bool) else ():
            try:
                spec_of({**config, name: wrong})
            except UserError as error:
                assert "Fix:" in str(error) and "config.json" in str(error)


@cases
def test_another_architecture_is_refused(case: Case) -> None:
    for name in ("SomethingForEverything", "T5EncoderModel"):
        with pytest.raises(UserError, match=f"architecture '{name}' is not known(.|\n)*architectures(.|\n)*Fix:"):
            spec_of({**config_of(case), "architectures": [name]})


@pytest.mark.parametrize("name", ["llamma", "qwen-3", "bertt", "mixtrall", "t_5"])
def test_an_unknown_model_type_offers_near_names(name: str) -> None:
    with pytest.raises(UserError, match="did you mean"):
        build_any({"model_type": name})


def test_contradictions_are_named() -> None:
    llama = config_of(next(case for case in CASES if case.name == "llama grouped"))
    gemma = config_of(next(case for case in CASES if case.name == "gemma2"))
    vit = config_of(next(case for case in CASES if case.name == "vit classes"))
    moe = config_of(next(case for case in CASES if case.name == "mixtral"))
    for config, message in (
        ({**llama, "num_key_value_heads": 3}, "heads=4, kv_heads=3"), ({**gemma, "layer_types": ["full_attention"]}, "layer_types"),
        ({**gemma, "layer_types": ["full_attention", "diagonal", "full_attention"]}, "diagonal"),
        ({**gemma, "sliding_window": None}, "without a window"), ({**vit, "patch_size": 5}, "multiple of patch"),
        ({**moe, "num_experts_per_tok": 9}, "top_k=9, experts=5"), ({**llama, "num_hidden_layers": 10**9}, "1000000000 layers"),
        ({**llama, "rope_parameters": {"rope_type": "lineer", "factor": 2.0}}, "did you mean 'linear'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            spec_of(config)


def test_every_family_is_asked() -> None:
    assert {case.model_type for case in CASES} == set(FAMILIES)
