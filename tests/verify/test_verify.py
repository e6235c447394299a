"""The checks hold here, each can fail, and the command says so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.batch import Loss
from hornbook.cli.main import run
from hornbook.cli.verify import report
from hornbook.files import write_text
from hornbook.model import Context
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.objective import causal_lm
from hornbook.verify.checks import CHECKS
from hornbook.verify.proof import Check, Finding

CPU = torch.device("cpu")


def failing(device: torch.device) -> Finding:
    return Finding(3, 2, "apples")


def breaking_off(device: torch.device) -> Finding:
    raise RuntimeError("the apples are gone\nand more")


def test_every_invariant_holds_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(CHECKS, CPU, as_json=False) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[-1] == f"{len(CHECKS)} passed, 0 failed"
    assert [line.split()[-1] for line in lines[:-1]] == ["ok"] * len(CHECKS)
    for line, check in zip(lines, CHECKS, strict=False):
        assert line.startswith(check.name) and check.measures in line and "at most" in line
    assert "device: cpu" in err


@pytest.mark.parametrize(
    "measure", [failing, breaking_off, lambda device: Finding(math.nan, 1, "apples"), lambda device: Finding(math.inf, 1, "apples")]
)
def test_a_broken_invariant_is_reported(measure: Callable[[torch.device], Finding], capsys: pytest.CaptureFixture[str]) -> None:
    sound = Check("sound", "nothing", lambda device: Finding(0, 0, "pears"))
    checks = [sound, Check("broken", "apples against pears", measure), sound]
    assert report(checks, CPU, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["ok", "FAILED", "ok"]
    assert lines[1].startswith("broken") and "apples against pears" in lines[1]
    assert lines[3] == "2 passed, 1 failed"


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("one", "a", lambda device: Finding(1, 2, "x")), Check("two", "b", lambda device: Finding(math.nan, 2, "x"))]
    assert report([*checks, Check("three", "c", breaking_off)], CPU, as_json=True) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["device"], record["passed"], record["failed"]) == ("cpu", 1, 2)
    assert [proof["holds"] for proof in record["proofs"]] == [True, False, False]
    assert [proof["figure"] for proof in record["proofs"]] == [1, None, None]
    assert record["proofs"][2]["error"] == "the apples are gone"


def test_an_absent_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    assert run(["verify", "--device", absent]) == 2
    assert "Fix:" in capsys.readouterr().err


def mean_of_means(model: Any, batch: Any) -> Loss:
    loss = causal_lm(model, batch)
    return replace(loss, total=loss.total / loss.count.clamp(min=1), count=torch.tensor(1))


@contextmanager
def straight_to_its_place(target: Path, about: Any = None) -> Any:
    """A writer that is not atomic."""
    target.mkdir(exist_ok=True)
    yield target
    write_text(target / "manifest.json", "{}")


def with_specials(tokenizer: Tokenizer, text: str) -> list[int]:
    """An encoder that reads special strings in a text."""
    return [tokenizer.special(text)] if text in tokenizer.specials else [tokenizer.special("<|bos|>")] * ("<|bos|>" in text)


# What is broken, how, and the check that has to notice.
SABOTAGE: dict[str, tuple[str, Any]] = {
    "tokenizer": ("hornbook.text.tokenizer.Tokenizer.encode", with_specials),
    "cached = full": ("hornbook.generation.cache.DenseCache.update", lambda self, layer, k, v, positions: (k, v, positions)),
    "packed = separate": ("hornbook.train.objective.Context", lambda **given: Context(positions_bt=given["positions_bt"])),
    "accumulated = one batch": ("hornbook.verify.runs.causal_lm", mean_of_means),
    "guarded = never seen": ("hornbook.train.guard.Guard.judge", lambda self, loss, norm: None),
    "first loss": ("hornbook.verify.tiny.initialize", lambda model, seed: model),
    "one batch": ("hornbook.optim.build.Optimizers.step", lambda self, clip, norm: None),
    "resumed = uninterrupted": ("hornbook.checkpoint.state._moments", lambda model, optimizer: []),
    "2 ranks = 1 rank": ("hornbook.verify.tiny.warmup_decay", lambda steps, warmup: lambda step: 0.9),
    "exported = model": ("hornbook.checkpoint.pretrained.to_published", None),
    "atomic writer": ("hornbook.verify.runs.written_folder", straight_to_its_place),
    "town": ("hornbook.verify.town.BYTES", 30_000),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "2 ranks = 1 rank" else name for name in SABOTAGE]
)
def test_a_check_notices_what_it_is_for(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from hornbook.families.weights import to_published

    place, broken = SABOTAGE[name]
    if name == "exported = model":  # weights that pass through half precision on their way

        def broken(rules: Any, ours: Any) -> Any:
            return {key: value.bfloat16().float() for key, value in to_published(rules, ours).items()}

    monkeypatch.setattr(place, broken)
    assert report([check for check in CHECKS if check.name == name], CPU, as_json=False) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"
