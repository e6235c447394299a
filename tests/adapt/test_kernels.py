"""A model with kernels in the interpreter gives the losses and gradients of the same model without."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from hornbook.adapt.kernels import KERNELS, use_kernels
from hornbook.batch import Batch
from hornbook.errors import UserError
from hornbook.kernels import part
from hornbook.model import Context
from hornbook.train.objective import causal_lm
from tests.reference import tiny
from tests.reference.interpreted import kernels_on
from tests.reference.tiny import GPT2, random_batch, tiny_model

# A layer each: the interpreter is slow.
LLAMA, QWEN3 = {**tiny.LLAMA, "num_hidden_layers": 1}, {**tiny.QWEN3, "num_hidden_layers": 1}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 4}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels_on(request.param):
        yield request.param


def step(
    config: dict[str, Any], names: list[str], batch: Batch, device: str, short: torch.dtype | None = None
) -> list[torch.Tensor]:
    """The loss of one batch, and its gradients."""
    model = tiny_model(config, dtype=torch.float32).to(device)
    use_kernels(model, names)
    batch = replace(batch, **{name: value.to(device) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)})
    with torch.autocast(device, short or torch.bfloat16, enabled=short is not None):
        total = causal_lm(model, batch).total
    total.backward()
    return [total.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("names", [["rms_norm"], ["rope"], ["attention"], ["cross_entropy"], list(KERNELS)], ids=" ".join)
def test_each_kernel_leaves_losses_and_gradients_as_they_are(device: str, names: list[str]) -> None:
    batch = random_batch(1, 9, 1, share=0.8)
    torch.testing.assert_close(step(LLAMA, names, batch, device), step(LLAMA, [], batch, device), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [MISTRAL, QWEN3], ids=["window", "normed heads"])
def test_all_kernels_in_other_families(device: str, config: dict[str, Any]) -> None:
    batch = random_batch(1, 9, 2)
    torch.testing.assert_close(step(config, list(KERNELS), batch, device), step(config, [], batch, device), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "ctx", "window"),
    [
        (LLAMA, Context(), None), (MISTRAL, Context(), 4),
        (LLAMA, Context(padding_bs=torch.ones(1, 9, dtype=torch.bool)), "not called"),
        (MISTRAL, Context(documents_bt=torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]])), "not called"),
    ],
    ids=["causal", "window", "padded", "packed with a window"],
)  # fmt: skip
def test_attention_is_the_kernels_where_no_mask_says_more_than_it_knows(
    device: str, config: dict[str, Any], ctx: Context, window: int | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, windows = part("flash_attention").flash_attention, set()

    def seen(*given: torch.Tensor, **how: Any) -> torch.Tensor:
        windows.add(how["window"])
        return kernel(*given, **how)

    monkeypatch.setattr(part("flash_attention"), "flash_attention", seen)
    model, tokens = tiny_model(config, dtype=torch.float32).to(device), torch.arange(9, device=device)[None]
    ctx = Context(**{name: value.to(device) for name, value in vars(ctx).items() if isinstance(value, torch.Tensor)})
    before = model.hidden(tokens, ctx)
    use_kernels(model, ["attention"])
    torch.testing.assert_close(model.hidden(tokens, ctx), before, rtol=1e-4, atol=1e-5)
    assert windows == (set() if window == "not called" else {window})


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's own norm of bf16 by float32 weights
def test_under_autocast(device: str) -> None:
    """Both are rounded, each in its way: as near to one another as bf16 is to float32."""
    batch = random_batch(1, 9, 4)
    found, plain = (step(QWEN3, names, batch, device, torch.bfloat16) for names in (list(KERNELS), []))
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.dtype == theirs.dtype and float((ours - theirs).norm() / theirs.norm()) < 0.03


def test_a_copy_computes_with_its_own_weights_and_no_names_undo_it(device: str) -> None:
    model, tokens = tiny_model(LLAMA, dtype=torch.float32).to(device), torch.arange(5, device=device)[None]
    before = model.hidden(tokens, Context())
    use_kernels(model, list(KERNELS))
    assert not model.hidden(tokens, Context()).equal(before)  # rounded another way: the kernels did run
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin.hidden(tokens, Context()), before, rtol=1e-4, atol=1e-5)
    use_kernels(twin, [])
    assert twin.hidden(tokens, Context()).equal(before)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (LLAMA, "rms_nrom", "did you mean 'rms_norm'"),
        (GPT2, "rms_norm", "nothing that the kernel rms_norm"),
        (GPT2, "rope", "leave"),
    ],
)
def test_what_cannot_be_is_refused(device: str, config: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        use_kernels(tiny_model(config), [name])


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="kernels = 'triton' needs a CUDA device, and the model is on cpu(?s:.)*Fix: "):
        use_kernels(tiny_model(), ["rope"])


def test_without_triton_it_says_so_and_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else plain(name, *rest))
    for name in [name for name in sys.modules if name.startswith("hornbook.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    model = tiny_model()
    with pytest.raises(UserError, match=r"hornbook\[kernels\]"):
        use_kernels(model, ["rope"])
    use_kernels(model, [])
    assert causal_lm(model, random_batch(1, 5, 0)).total.isfinite()
