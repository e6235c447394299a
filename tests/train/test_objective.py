"""Objectives against transformers' own losses on tiny random models, and against plain torch in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hornbook.batch import IGNORE, Batch, Loss, shifted_right
from hornbook.data.batches import moved
from hornbook.optim.build import build_optimizer
from hornbook.train import distillation as distillation_module
from hornbook.train.distillation import distillation
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal, causal_lm, classification, masked_lm, seq2seq
from tests.reference.published import CASES, VOCAB, pair
from tests.reference.tiny import LLAMA, Given, random_batch, tiny_model

ROWS, SOURCE, TARGET, PAD, START = 3, 11, 8, 1, 2


def compared(name: str) -> tuple[Any, Any]:
    """transformers' model of a case and ours, in float64."""
    theirs, ours = pair(next(case for case in CASES if case.name == name), torch.float64)
    theirs.zero_grad()
    ours.zero_grad()
    return theirs, ours


def ids(length: int, seed: int) -> Tensor:
    return torch.randint(3, VOCAB, (ROWS, length), generator=torch.Generator().manual_seed(seed))


def some(ids_bt: Tensor, share: float, seed: int) -> Tensor:
    """The ids as targets, about `share` of them asked for."""
    return ids_bt.masked_fill(torch.rand(ids_bt.shape, generator=torch.Generator().manual_seed(seed)) > share, IGNORE)


def padded(length: int) -> Tensor:
    """True where a token may be seen: each row ends one earlier than the one before."""
    return torch.arange(length) < length - torch.arange(ROWS)[:, None]


def same_loss_and_gradients(loss: Loss, expected: Tensor, theirs: Any, ours: Any, names: dict[str, str], bound: float) -> None:
    mean = loss.total / loss.count
    torch.testing.assert_close(mean, expected.to(mean.dtype), rtol=bound, atol=0.0)
    mean.backward()
    expected.backward()
    for our_name, their_name in names.items():
        found, wanted = ours.get_parameter(our_name).grad, theirs.get_parameter(their_name).grad
        assert float(wanted.abs().max()) > 1e-4
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=bound * max(1.0, float(wanted.abs().max())))


def test_masked_lm_is_that_of_transformers() -> None:
    theirs, ours = compared("bert masked")
    tokens, targets, padding = ids(SOURCE, 0), some(ids(SOURCE, 1), 0.3, 2), padded(SOURCE)
    expected = theirs(tokens, attention_mask=padding.long(), labels=targets).loss
    loss = masked_lm(ours, Batch(tokens, targets, padding_bs=padding))
    assert int(loss.count) == int((targets != IGNORE).sum()) < targets.numel()
    names = {"stem.tokens.weight": "bert.embeddings.word_embeddings.weight", "head.out.bias": "cls.predictions.bias"}
    same_loss_and_gradients(loss, expected, theirs, ours, names, 1e-10)


@pytest.mark.parametrize(
    ("name", "bound", "theirs_of_ours"),
    [
        ("bart", 1e-10, {"encoder_stem.tokens.weight": "model.shared.weight"}),
        ("t5", 1e-5, {"encoder_stem.tokens.weight": "shared.weight"}),  # transformers' norms and biases are in float32
    ],
)
def test_seq2seq_is_that_of_transformers(name: str, bound: float, theirs_of_ours: dict[str, str]) -> None:
    """They shift the labels themselves; the padded ends of sources and targets count for nothing."""
    theirs, ours = compared(name)
    source, padding, targets = ids(SOURCE, 0), padded(SOURCE), ids(TARGET, 1).masked_fill(~padded(TARGET), IGNORE)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = START, PAD
    expected = theirs(source, attention_mask=padding.long(), labels=targets).loss
    batch = Batch(shifted_right(targets, START, PAD), targets, source_bs=source, padding_bs=padding)
    same_loss_and_gradients(seq2seq(ours, batch), expected, theirs, ours, theirs_of_ours, bound)
    totals = [seq2seq(ours, each).total.detach() for each in (batch, replace(batch, padding_bs=None))]
    assert float((totals[0] - totals[1]).abs()) > 1e-3, "the padding matters"


def test_shifted_right() -> None:
    targets = torch.tensor([[5, 6, 7, IGNORE], [8, IGNORE, IGNORE, IGNORE]])
    assert shifted_right(targets, START, PAD).tolist() == [[START, 5, 6, 7], [START, 8, PAD, PAD]]


def test_seq2seq_trains_in_the_loop_and_needs_a_source() -> None:
    ours: Any = pair(next(case for case in CASES if case.name == "bart"))[1]
    targets, rows = ids(TARGET, 1), list[dict[str, Any]]()
    batch = moved(Batch(shifted_right(targets, START, PAD), targets, source_bs=ids(SOURCE, 0), padding_bs=padded(SOURCE)), "cpu")
    run = Run(steps=15, log_every=1, log=rows.append)
    fit(ours, Given([batch] * 15), seq2seq, build_optimizer(ours, "adamw", 0.01), lambda step: 1.0, run)
    pair.cache_clear()  # its weights are others now
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    with pytest.raises(ValueError, match="source_bs"):
        seq2seq(ours, replace(batch, source_bs=None))
    with pytest.raises(ValueError, match="one source per row"):
        seq2seq(ours, replace(batch, documents_bt=torch.zeros_like(targets)))


def test_classification_is_that_of_transformers() -> None:
    theirs, ours = compared("bert classes")
    tokens, classes, padding = ids(SOURCE, 0), torch.tensor([2, 0, 1]), padded(SOURCE)
    answer = theirs(tokens, attention_mask=padding.long(), labels=classes)
    loss = classification()(ours, Batch(tokens, classes, padding_bs=padding))
    assert int(loss.metrics["right"]) == int((answer.logits.argmax(-1) == classes).sum())
    same_loss_and_gradients(loss, answer.loss, theirs, ours, {"head.out.weight": "classifier.weight"}, 1e-10)


def test_label_smoothing_is_its_formula() -> None:
    theirs, ours = compared("bert classes")
    tokens, classes, e = ids(SOURCE, 0), torch.tensor([2, IGNORE, 1]), 0.2
    log_p = theirs(tokens).logits.log_softmax(-1)[[0, 2]]
    wanted = torch.full((2, 3), e / 3, dtype=torch.float64).scatter_(1, torch.tensor([[2], [1]]), 1 - e + e / 3)
    loss = classification(e)(ours, Batch(tokens, classes))
    torch.testing.assert_close(loss.total, -(wanted * log_p).sum(), rtol=1e-10, atol=0.0)
    assert int(loss.count) == 2


def test_classification_refuses_what_is_no_class_per_row() -> None:
    _, ours = compared("bert classes")
    with pytest.raises(ValueError, match="one class per row"):
        classification()(ours, Batch(ids(SOURCE, 0), ids(SOURCE, 1)))
    with pytest.raises(ValueError, match="label_smoothing"):
        classification(1.0)


def graded(model: torch.nn.Module, total: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def test_z_loss_changes_gradients_and_not_what_is_logged() -> None:
    model, batch = tiny_model(), random_batch(3, 9, seed=1, share=0.6)
    loss, plain = causal(z_loss=0.05)(model, batch), causal_lm(model, batch)
    torch.testing.assert_close(loss.total, plain.total, rtol=1e-12, atol=0.0)
    z = 0.05 * (model(batch.tokens_bt).logsumexp(-1)[batch.targets_bt != IGNORE] ** 2).sum()
    torch.testing.assert_close(loss.metrics["z_loss"], z.detach(), rtol=1e-12, atol=0.0)
    expected = graded(model, causal_lm(model, batch).total + z)
    torch.testing.assert_close(graded(model, loss.total), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_distillation_is_its_formula(chunk: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hinton et al. 2015: probabilities and not logarithms, whole logits, one product per token."""
    monkeypatch.setattr(distillation_module, "CHUNK", chunk)
    student, teacher, temperature, hard = tiny_model(), tiny_model({**LLAMA, "num_hidden_layers": 1}, seed=7), 3.0, 0.25
    batch = random_batch(3, 9, seed=1, share=share)
    asked = batch.targets_bt != IGNORE
    teacher.train()
    loss = distillation(teacher, temperature, hard)(student, batch)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    q, p = ((model(batch.tokens_bt)[asked] / temperature).softmax(-1) for model in (teacher, student))
    soft = (q * (q / p).log()).sum()
    nats = -student(batch.tokens_bt)[asked].softmax(-1).gather(1, batch.targets_bt[asked][:, None]).log().sum()
    expected = temperature**2 * soft + hard * nats
    torch.testing.assert_close(loss.total, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(loss.metrics, {"soft": soft.detach(), "nats": nats.detach()}, rtol=1e-11, atol=1e-11)
    assert int(loss.count) == int(asked.sum())
    torch.testing.assert_close(graded(student, loss.total), graded(student, expected), rtol=1e-9, atol=1e-11)


def test_a_student_learns_its_teacher() -> None:
    teacher, student = tiny_model(seed=7, dtype=torch.float32), tiny_model(dtype=torch.float32)
    batches = [random_batch(4, 12, seed) for seed in range(4)] * 15
    soft = [float(distillation(teacher, hard=0.0)(student, batches[0]).metrics["soft"])]
    fit(student, Given(batches), distillation(teacher, hard=0.0), build_optimizer(student, "adamw", 0.01), lambda step: 1.0,
        Run(steps=len(batches)))  # fmt: skip
    soft.append(float(distillation(teacher, hard=0.0)(student, batches[0]).metrics["soft"]))
    assert soft[1] < 0.5 * soft[0]


def test_distillation_wants_one_vocabulary_and_a_temperature() -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        distillation(tiny_model({**LLAMA, "vocab_size": 70}))(tiny_model(), random_batch(2, 5, 0))
    with pytest.raises(ValueError, match="temperature"):
        distillation(tiny_model(), temperature=0.0)


def test_a_logits_wide_tensor_of_distillation_is_never_whole() -> None:
    """The profiler's largest allocation, against that of the plain formula."""
    config = {**LLAMA, "vocab_size": 4096, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    student, teacher = (tiny_model(config, seed, torch.float32) for seed in (0, 1))
    tokens = torch.randint(4096, (1, 2048))
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        distillation(teacher)(student, Batch(tokens, tokens)).total.backward()
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 4 * 2048 * 4096 / 4
