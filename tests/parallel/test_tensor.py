"""A part of every matrix on each rank: outputs, losses and gradients are one process's, for every family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from hornbook.batch import IGNORE, Batch, Loss, shifted_right
from hornbook.families import Model, build_any
from hornbook.model import ClassHead, Context, FrameStem, LMHead, MLMHead, PatchStem, Seq2SeqModel, initialize
from hornbook.parallel.tensor import tensor_parallel
from hornbook.train.ctc import ctc
from hornbook.train.objective import causal_lm, classification, masked_lm, seq2seq
from tests.parallel.pool import ranks

ROWS, LENGTH = 2, 12


def perturbed(config: dict[str, Any], dtype: torch.dtype) -> Model:
    """A model whose every parameter matters, the same on every rank, in training."""
    model = initialize(build_any(config), 0, std=0.2).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.1)
    return model.train()


def example(model: Model, dtype: torch.dtype) -> tuple[Batch, tuple[Tensor, ...]]:
    """A ragged batch for the model's objective, and what goes into its forward."""
    draw, config = torch.Generator().manual_seed(2), model.config
    ids = torch.randint(3, config.get("vocab_size", 9), (ROWS, LENGTH + 1), generator=draw)
    targets = ids[:, 1:].masked_fill(torch.rand((ROWS, LENGTH), generator=draw) < 0.3, IGNORE)
    padding = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 3]])
    if isinstance(model, Seq2SeqModel):
        source = torch.randint(3, config["vocab_size"], (ROWS, LENGTH), generator=draw)
        return Batch(shifted_right(targets, 2, 1), targets, source_bs=source, padding_bs=padding), (source, ids[:, :-1])
    if isinstance(model.spec.stem, PatchStem):
        images = torch.randn((ROWS, model.spec.stem.channels, *model.spec.stem.image), generator=draw).to(dtype)
        return Batch(images, torch.tensor([1, 0])), (images,)
    if isinstance(model.spec.stem, FrameStem):
        frames = torch.randn((ROWS, model.spec.stem.mels, 2 * LENGTH), generator=draw).to(dtype)
        return Batch(frames, ids[:, :4]), (frames,)
    if isinstance(model.spec.head, ClassHead):
        return Batch(ids[:, :-1], torch.tensor([1, 0]), padding_bs=padding), (ids[:, :-1],)
    return Batch(ids[:, :-1], targets, padding_bs=padding), (ids[:, :-1],)


def loss_of(model: Model, batch: Batch) -> Loss:
    if isinstance(model, Seq2SeqModel):
        return seq2seq(model, batch)
    head = model.spec.head
    if isinstance(model.spec.stem, FrameStem):
        return ctc(model, batch)
    if isinstance(head, LMHead | MLMHead):
        return (causal_lm if isinstance(head, LMHead) else masked_lm)(model, batch)
    if isinstance(head, ClassHead) and head.classes:
        return classification()(model, batch)
    out = model(batch.tokens_bt, Context(padding_bs=batch.padding_bs))
    return Loss(out.logsumexp(-1).square().sum(), torch.tensor(out.shape[0]))


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def compared(config: dict[str, Any], sequence: bool, dtype: torch.dtype) -> dict[str, float]:
    """How far outputs, loss and gradients of this rank's part are from the whole model's."""
    one = perturbed(config, dtype)
    cut = copy.deepcopy(one)
    tensor_parallel(cut, init_device_mesh("cpu", (torch.distributed.get_world_size(),)), sequence)
    batch, inputs = example(one, dtype)
    found = {"output": apart(one(*inputs).detach(), cut(*inputs).detach())}
    losses = [loss_of(model, batch) for model in (one, cut)]
    for loss in losses:
        loss.total.backward()
    found["loss"] = apart(losses[0].total.detach(), losses[1].total.detach())
    expected, theirs = gradients(one), gradients(cut)
    assert expected.keys() == theirs.keys()
    return found | {name: apart(expected[name], theirs[name]) for name in expected}


def all_compared(rank: int, configs: dict[str, dict[str, Any]], sequence: bool, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    return {name: compared(config, sequence, dtype) for name, config in configs.items()}


def configs(vocab: int = 100) -> dict[str, dict[str, Any]]:
    """Every family and switch that is compared with transformers, where two ranks can share it."""
    import transformers

    from tests.reference.published import CASES, DROPOUTS

    found = {}
    for case in CASES:
        settings = {**case.settings, "vocab_size": vocab}
        if settings.get("num_key_value_heads") == 1:
            continue
        if case.model_type == "speech_ctc":
            found[case.name] = {**transformers.WhisperConfig(**settings).to_dict(), "model_type": "speech_ctc"}
            found[case.name]["architectures"] = ["SpeechEncoderForCTC"]
            continue
        if case.model_type == "vit":
            settings |= {"image_size": [12, 20], "patch_size": 4}  # with the class token 16 positions
        config = transformers.AutoConfig.for_model(case.model_type, **settings)
        made = getattr(transformers, case.auto)._model_mapping[type(config)]
        made = made[0] if isinstance(made, tuple) else made
        dropouts = {name: 0.0 for name in config.to_dict() if name in DROPOUTS}
        found[case.name] = {
            **config.to_dict(),
            **dropouts,
            "architectures": [(made[0] if isinstance(made, tuple) else made).__name__],
        }
    return found


def worst(results: list[dict[str, dict[str, float]]]) -> dict[str, tuple[float, str]]:
    return {
        f"{case} on rank {rank}": max((value, name) for name, value in figures.items())
        for rank, cases in enumerate(results) for case, figures in cases.items()
    }  # fmt: skip


@pytest.mark.parametrize("sequence", [False, True], ids=["tensor", "sequence"])
def test_every_family_is_one_process(sequence: bool) -> None:
    found = worst(ranks(2).run(all_compared, configs(), sequence, torch.float64))
    assert {case: figure for case, figure in found.items() if not figure[0] < 1e-10} == {}
