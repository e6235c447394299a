"""`hornbook bench device` says what it measured, and the figures hang together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hornbook.cli.main import run
from hornbook.stages import bench


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "SIDE", {"cpu": 64})
    monkeypatch.setattr(bench, "BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(bench, "SECONDS", 0.01)


def test_the_knee_is_the_peak_over_the_bandwidth(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "device", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["flops_per_second"]) == {"fp32", "bf16", "fp16"} and found["threads"] == torch.get_num_threads()
    for name, peak in found["flops_per_second"].items():
        assert found["knee_flops_per_byte"][name] == pytest.approx(peak / found["bytes_per_second"])
        assert 1e6 < peak < 1e14 and 1e6 < found["bytes_per_second"] < 1e13


def test_a_product_is_two_operations_per_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_fastest", lambda *_: 0.5)
    found = bench.device_limits(torch.device("cpu"))
    assert found["flops_per_second"]["fp32"] == 4 * 64**3
    assert found["bytes_per_second"] == 4 * (1 << 16)


def test_it_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "device", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "GB/s" in out and "bf16" in out and "64 x 64" in out
    assert run(["bench"]) == 2 and "hornbook bench device" in capsys.readouterr().err


def test_the_best_that_was_ever_measured_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, times = torch.device("cpu"), [0.5, 0.25, 1.0]
    monkeypatch.setattr(bench, "_fastest", lambda *_: times.pop(0))
    assert bench.matmul_peak(cpu, "fp32", measure=False) == 0
    found = [bench.matmul_peak(cpu, "fp32", measure) for measure in (True, True, True, False)]
    assert found == [32**3 * 4, 32**3 * 8, 32**3 * 8, 32**3 * 8] and times == []
    assert bench.matmul_peak(cpu, "bf16", measure=False) == 0  # another format is another figure


def test_a_cache_that_cannot_be_written_costs_a_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "hornbook").write_text("a file in the place of the folder")
    assert bench.matmul_peak(torch.device("cpu"), "fp32", measure=True) > 0


def test_the_longer_measurement_is_what_runs_are_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "device", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert bench.matmul_peak(torch.device("cpu"), "bf16", measure=False) == found["flops_per_second"]["bf16"] > 0


@pytest.mark.parametrize("kept", ["", "[1]", '{"x": "y"}'])
def test_a_cache_that_cannot_be_read_is_measured_again(kept: str, tmp_path: Path) -> None:
    (tmp_path / "hornbook").mkdir()
    (tmp_path / "hornbook" / "peaks.json").write_text(kept)
    assert bench.matmul_peak(torch.device("cpu"), "fp32", measure=True) > 0


def test_measuring_draws_none_of_a_runs_random_numbers() -> None:
    before = torch.random.get_rng_state()
    bench.matmul_peak(torch.device("cpu"), "fp32", measure=True)
    assert before.equal(torch.random.get_rng_state())
