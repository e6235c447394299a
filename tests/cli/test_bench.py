"""`hornbook bench device` says what it measured, and the figures hang together."""

from __future__ import annotations

import json

import pytest
import torch

from hornbook.cli.main import run
from hornbook.stages import bench


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(bench, "_fastest", lambda device, work: 0.5)
    found = bench.device_limits(torch.device("cpu"))
    assert found["flops_per_second"]["fp32"] == 4 * 64**3
    assert found["bytes_per_second"] == 4 * (1 << 16)


def test_it_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "device", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "GB/s" in out and "bf16" in out and "64 x 64" in out
    assert run(["bench"]) == 2 and "hornbook bench device" in capsys.readouterr().err
