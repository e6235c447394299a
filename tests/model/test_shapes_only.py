"""Models without memory."""

from __future__ import annotations

import subprocess
import sys

from hornbook.families import build
from hornbook.model import shapes_only
from tests.reference.models import CONFIGS

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
