"""What a recipe's switches change in a built model, and which of them are for one process alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hornbook.adapt import flex
from hornbook.errors import UserError
from hornbook.families import build
from hornbook.model import shapes_only
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team
from hornbook.stages.settings import Learning
from hornbook.stages.train import _check_alone, check, switch
from hornbook.train.objective import causal_lm
from tests.reference.interpreted import kernels_on
from tests.reference.tiny import GPT2, LLAMA, random_batch, tiny_model


@pytest.fixture
def interpreted() -> Iterator[None]:
    with kernels_on("cpu"):
        yield


def reached(*_: Any, **__: Any) -> None:
    pytest.fail("reached")


def switched(config: dict[str, Any], **settings: Any) -> tuple[float, list[str], bool]:
    """The loss of a batch in a model that the switches have changed, what was said, and whether the head has a kernel."""
    model, said = tiny_model(config, dtype=torch.float32), list[str]()
    switch(model, Learning(**settings), said.append)
    return float(causal_lm(model, random_batch(1, 9, 0)).total.detach()), said, "row_losses" in vars(model.head)


@pytest.mark.parametrize(
    ("config", "said"),
    [(LLAMA, "kernels: rms_norm, rope, attention, cross_entropy"), (GPT2, "kernels: attention, cross_entropy")],
    ids=["llama", "gpt2"],
)
def test_kernels_are_those_that_the_model_has_something_for(interpreted: None, config: dict[str, Any], said: str) -> None:
    plain, silence, before = switched(config)
    found, heard, after = switched(config, kernels="triton")
    assert not silence and heard == [said] and found == pytest.approx(plain, rel=1e-5) and after and not before


def test_attention_is_flex_where_both_are_asked_for(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "NO_BACKWARD", ())
    monkeypatch.setattr(flex, "_fused", lambda device: (reached, reached))
    with torch.no_grad():
        assert switched(LLAMA, kernels="triton", attention="flex")[1] == ["kernels: rms_norm, rope, cross_entropy"]
    with pytest.raises(pytest.fail.Exception, match="reached"):
        switched(LLAMA, kernels="triton", attention="flex")


def test_eight_bits_are_said() -> None:
    plain, (found, said, _) = switched(LLAMA)[0], switched(LLAMA, precision="fp8")
    assert said == ["fp8: 4 of 14 matrices of blocks; the others' sizes are no multiples of 16"] and found == plain  # 9 tokens


@pytest.mark.parametrize(
    ("sizes", "config", "says"),
    [
        ({"data": 2}, LLAMA, "of parallel.data: 3 rows, 2 parts(?s:.*)Where: rows, parallel.data\n.*\nFix: .* 2 or 4"),
        ({"data": 2, "expert": 2}, LLAMA, "rows must be a multiple of parallel.data x parallel.expert: 3 rows(?s:.*)rows to 4$"),
        ({"tensor": 2}, {**GPT2, "vocab_size": 60, "n_head": 1}, "heads=1, tensor=2(?s:.*)Fix: .* or heads \\(n_head\\) to 2"),
        ({"tensor": 2}, {**LLAMA, "vocab_size": 60, "num_key_value_heads": 1}, "or kv_heads \\(num_key_value_heads\\) to 2"),
        ({"pipeline": 9}, LLAMA, "parallel.pipeline must be at most the model's layers: 9 stages"),
        ({"expert": 3}, LLAMA, "parallel.expert needs a mixture of experts"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_cut_the_run_are_found_by_shapes_alone(
    sizes: dict[str, Any], config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with shapes_only():
        model = build(config)
    team = SimpleNamespace(sizes=Parallel(**sizes), device=torch.device("cpu"))
    team.check = lambda *given: Team.check(cast("Any", team), *given)
    with pytest.raises(UserError, match=says):
        check(model, Learning(rows=3), cast("Any", team), tmp_path)
    check(model, Learning(rows=3), Team(), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{"compile": True}, {"weights": "bf16"}, {"attention": "flex"}, {"precision": "fp8"}, {"kernels": "triton"}],
    ids=str,
)
def test_what_is_proven_on_one_process_is_refused_on_more(settings: dict[str, Any]) -> None:
    class Two:
        sizes = Parallel(tensor=2)

    name = next(iter(settings))
    with pytest.raises(UserError, match=f"{name} = .* is proven on (one process|copies) alone") as error:
        _check_alone(Learning(**settings), cast("Any", Two))
    assert error.value.where == name
    _check_alone(Learning(), cast("Any", Two))
