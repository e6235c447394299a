"""A part of every matrix on each rank: outputs, losses and gradients are one process's, for every family."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from hornbook.batch import IGNORE, Batch, Loss, shifted_right
from hornbook.errors import UserError
from hornbook.families import FAMILIES, Model, build_any
from hornbook.model import ClassHead, Context, FrameStem, LMHead, MLMHead, PatchStem, Seq2SeqModel, initialize
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team
from hornbook.parallel.tensor import tensor_parallel
from hornbook.train.ctc import ctc
from hornbook.train.objective import causal, causal_lm, classification, masked_lm, seq2seq
from tests.parallel.pool import ranks
from tests.reference.models import small_config

ROWS, LENGTH = 2, 12
ALIKE = ("rope", "windows", "wide", "scaled", "spans", "tags")  # the same to a rank as another case of the family


@cache
def all_ranks() -> DeviceMesh:
    return init_device_mesh("cpu", (torch.distributed.get_world_size(),))


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
    cut = cut_of(one, sequence)
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


def cut_of(one: Model, sequence: bool) -> Model:
    cut = copy.deepcopy(one)
    tensor_parallel(cut, all_ranks(), sequence)
    return cut


def stepped(rank: int, config: dict[str, Any], sequence: bool) -> tuple[float, float]:
    """How far parameters after AdamW steps of two micro-batches are from the whole model's, and gradient norms."""
    one = perturbed(config, torch.float64)
    models = one, cut_of(one, sequence)
    norms: list[list[Tensor]] = [[], []]
    for model, found in zip(models, norms, strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, foreach=False)
        for step in range(4):
            for part in range(2):
                ids = torch.randint(3, 100, (2, LENGTH + 1), generator=torch.Generator().manual_seed(10 * step + part))
                documents = (torch.arange(LENGTH) >= 5).long().expand(2, -1)
                positions = torch.arange(LENGTH) - 5 * documents
                targets = ids[:, 1:].masked_fill(ids[:, 1:] % 7 == part, IGNORE)
                packed = Batch(ids[:, :-1], targets, documents_bt=documents, positions_bt=positions)
                causal(0.01)(model, packed).total.backward()
            given = [p.grad for p in model.parameters() if p.grad is not None]
            cut = [g for g in given if isinstance(g, DTensor)], [g for g in given if not isinstance(g, DTensor)]
            found.append(torch.stack([whole(nn.utils.get_total_norm(part)) for part in cut if part]).norm())
            optimizer.step()
            optimizer.zero_grad()
    expected, theirs = ({name: whole(p) for name, p in model.named_parameters()} for model in models)
    return max(apart(expected[name], theirs[name]) for name in expected), apart(*map(torch.stack, norms))


def dropped(rank: int, config: dict[str, Any], sequence: bool) -> tuple[float, Tensor, list[Tensor]]:
    """How far a training loss is from the whole model's, the embeddings' gradient, and where a rank's own values are dropped."""
    one = perturbed(config, torch.float64)
    models, totals, places = (one, cut_of(one, sequence)), [], []
    for name, module in models[1].named_modules():
        if name.endswith("blocks.1.ffn.post" if sequence else "blocks.1.ffn.op.down"):
            module.register_forward_pre_hook(lambda _, given: places.append(given[0] == 0))
    for model in models:
        torch.manual_seed(5)
        totals.append(loss_of(model, example(one, torch.float64)[0]).total)
        totals[-1].backward()
    return apart(*(total.detach() for total in totals)), next(iter(gradients(models[1]).values())), places


def read(rank: int, config: dict[str, Any]) -> float:
    """How far the logits of five positions, for which nobody asks gradients, are from the whole model's."""
    one = perturbed(config, torch.float64).eval()
    cut, ids = cut_of(one, True), torch.randint(3, 100, (2, 5), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return apart(one(ids), cut(ids))


def refusal(rank: int, config: dict[str, Any], sequence: bool, length: int) -> str:
    model = build_any(config)
    try:
        tensor_parallel(model, all_ranks(), sequence)
        model(torch.zeros((1, length), dtype=torch.long))
    except UserError as error:
        return str(error)
    return ""


def with_copies(rank: int, config: dict[str, Any], sizes: Parallel) -> float:
    """How far gradients and their norm are from one process's, where the batch is cut too: two micro-batches, ragged."""
    team, one = Team(sizes), perturbed(config, torch.float64)
    cut = copy.deepcopy(one)
    assert team.mesh is not None
    team.spread(cut)
    for last in (False, True):
        parts = []
        for part in range(team.parts):
            ids = torch.randint(3, 100, (2, LENGTH + 1), generator=torch.Generator().manual_seed(10 * last + part))
            parts.append(Batch(ids[:, :-1], ids[:, 1:].masked_fill(ids[:, 1:] % 7 <= part, IGNORE)))
            causal_lm(one, parts[-1]).total.backward()
        team.before_micro_batch(cut, last)
        causal_lm(cut, parts[team.part]).total.backward()
    expected, theirs = gradients(one), gradients(cut)
    assert expected.keys() == theirs.keys()
    norm = team.norm({name: p.grad for name, p in cut.named_parameters() if p.grad is not None})
    wrong_norm = float((norm / nn.utils.get_total_norm(list(expected.values())) - 1).abs())
    return max(wrong_norm, *(apart(expected[name], theirs[name]) for name in expected))


# --- what is compared -----------------------------------------------------------------------------------------------------


def configs(vocab: int = 100) -> dict[str, dict[str, Any]]:
    """Every family and switch that is compared with transformers, where two ranks can share it."""
    import transformers

    from tests.reference.published import CASES, DROPOUTS

    found = {}
    for case in CASES:
        settings = {**case.settings, "vocab_size": vocab}
        if settings.get("num_key_value_heads") == 1 or any(word in case.name for word in ALIKE):
            continue
        if case.model_type == "speech_ctc":  # Whisper's encoder
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


BOTH = [pytest.param(False, id="tensor"), pytest.param(True, id="sequence", marks=pytest.mark.slow)]


@pytest.mark.parametrize("sequence", BOTH)
def test_every_family_is_one_process(sequence: bool) -> None:
    cases = configs()
    assert {config["model_type"] for config in cases.values()} == set(FAMILIES)
    found = worst(ranks(2).run(all_compared, cases, sequence, torch.float64))
    assert {case: figure for case, figure in found.items() if not figure[0] < 1e-10} == {}


@pytest.mark.parametrize("sequence", BOTH)
def test_four_ranks(sequence: bool) -> None:
    """Also a norm over all heads, sinks per head, and experts."""
    four = {name: small_config(name, 100, num_key_value_heads=4) for name in ("olmo2", "gpt_oss", "qwen2_moe")}
    found = worst(ranks(4).run(all_compared, four, sequence, torch.float64))
    assert {case: figure for case, figure in found.items() if not figure[0] < 1e-10} == {}


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_with_copies(zero: Literal[0, 1, 3]) -> None:
    sizes = Parallel(data=2, tensor=2, zero=zero, sequence=zero != 1)
    assert max(ranks(4).run(with_copies, small_config("gpt_oss", 100), sizes)) < 1e-10


def test_single_precision() -> None:
    found = worst(ranks(2).run(all_compared, {"qwen3": small_config("qwen3", 100)}, True, torch.float32))
    assert {case: figure for case, figure in found.items() if not figure[0] < 1e-5} == {}


@pytest.mark.parametrize("sequence", [False, True], ids=["tensor", "sequence"])
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_steps_are_one_process(family: str, sequence: bool) -> None:
    """Packed documents, ragged targets, tied embeddings, a z-loss and balance losses, over steps of two micro-batches."""
    changes = {"router_aux_loss_coef": 0.1} if family == "mixtral" else {}
    for parameters, norm in ranks(2).run(stepped, small_config(family, 100, **changes), sequence):
        assert parameters < 1e-9 and norm < 1e-12


def test_whole_tensors_are_dropped_as_in_one_process() -> None:
    config = small_config("gpt2", 100, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.0)
    assert max(loss for loss, _, _ in ranks(2).run(dropped, config, False)) < 1e-12


@pytest.mark.parametrize("sequence", [False, True], ids=["tensor", "sequence"])
def test_parts_are_dropped_by_draws_of_their_own(sequence: bool) -> None:
    config = {**configs()["t5 gated, untied"], "dropout_rate": 0.3}
    (_, grad, places), (_, other_grad, other_places) = ranks(2).run(dropped, config, sequence)
    assert grad.equal(other_grad), "the ranks go on with one model"
    for mask, other in zip(places, other_places, strict=True):
        assert 0.2 < mask.double().mean() < 0.4 and 0.35 < (mask ^ other).double().mean() < 0.5  # 2 * 0.3 * 0.7


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_any_length_are_read_where_positions_are_split_to_learn(family: str) -> None:
    """Held-out text and samples, at which a run looks."""
    assert max(ranks(2).run(read, small_config(family, vocab_size=100))) < 1e-10


@pytest.mark.parametrize(
    "changes, sequence, length, message",
    [
        ({"vocab_size": 99}, False, 4, "vocab must be a multiple of parallel.tensor: vocab=99, tensor=2"),
        ({"num_key_value_heads": 1}, False, 4, "kv_heads=1, tensor=2"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, False, 4, "heads=3, tensor=2"),
        ({"intermediate_size": 5}, False, 4, "hidden=5, tensor=2"),
        ({}, True, 5, "positions must be a multiple of parallel.tensor: 5 positions"),
    ],
)
def test_what_does_not_divide_is_refused(changes: dict[str, Any], sequence: bool, length: int, message: str) -> None:
    said = ranks(2).run(refusal, small_config("llama", **{"vocab_size": 100, **changes}), sequence, length)
    assert all(message in each and "Fix:" in each for each in said)
