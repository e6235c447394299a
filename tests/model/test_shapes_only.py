"""Models without memory, and with memory that is filled later."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hornbook.families import build, build_any
from hornbook.model import Undrawn, initialize, shapes_only
from tests.reference.models import CONFIGS
from tests.reference.published import CASES, Case, oracle, published

GPT2 = {"model_type": "gpt2", "vocab_size": 50, **CONFIGS["gpt2"]}


def test_shapes_are_those_of_the_model_and_nothing_is_held() -> None:
    with shapes_only():
        found = build(GPT2)
    assert all(parameter.is_meta for parameter in found.parameters())
    expected = {name: value.shape for name, value in build(GPT2).state_dict().items()}
    assert {name: value.shape for name, value in found.state_dict().items()} == expected


def test_torch_loads_no_compiler_for_it() -> None:
    code = (
        "import sys; from hornbook.families import build; from hornbook.model import shapes_only\n"
        f"with shapes_only(): build({GPT2!r})\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_undrawn_weights_end_as_drawn_ones_do(case: Case) -> None:
    """No random number is used up, and no weight is left as it was found."""
    config, before = published(oracle(case))[0], torch.get_rng_state()
    torch.use_deterministic_algorithms(True)  # memory that nobody has filled is then NaN
    try:
        with Undrawn():
            found = build_any(config)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.get_rng_state(), before)
    assert any(value.isnan().any() for value in found.parameters())
    expected = dict(initialize(build_any(config), 3).state_dict())
    assert all(torch.equal(value, expected.pop(name)) for name, value in initialize(found, 3).state_dict().items())
    assert not expected and found.state_dict().keys() >= dict(found.named_buffers()).keys()  # a state holds all there is
