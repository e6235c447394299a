"""`hornbook try`: tables, JSON and a page from one command, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Refused = Callable[..., str]


def test_rates_and_optimizers_of_a_recipe(here: Path, command: Command) -> None:
    outcome = command("try", "rates", "gpt2.toml", "--steps", 24, "--low", 1e-4, "--high", 3)
    assert outcome.code == 0, outcome.err
    assert "muon: the loss is least at" in outcome.out and "(the recipe says 0.01)" in outcome.out
    again = command("try", "rates", "gpt2.toml", "--steps", 24, "--low", 1e-4, "--high", 3, "--json")
    record = json.loads(again.out)
    assert again.err.count("kept from before") == 3 and f"suggested rate {record['suggested']:.2g} (" in outcome.out
    compared = command("try", "optimizers", "gpt2.toml", "--steps", 2, "--html", "new/page.html")
    assert compared.code == 0, compared.err
    assert all(f"\n{kind} " in compared.out for kind in ("sgd", "adam", "adamw", "muon"))
    assert "One batch, learned by heart: 2 steps of 1 x 64 tokens" in compared.out
    for path in (here / "runs" / "gpt2" / "try-rates.html", here / "new" / "page.html"):
        text = path.read_text(encoding="utf-8")
        body = ET.fromstring(text.removeprefix("<!DOCTYPE html>"))
        charts = [node for node in body.iter("svg")]
        assert "://" not in text and charts and all(node.findall("polyline") for node in charts)
    assert command("pretrain", "gpt2.toml").err.count("kept from before") == 3  # the corpus, tokenizer and shards serve the run


def test_what_cannot_be_tried(here: Path, refused: Refused) -> None:
    assert "hornbook try" in refused("try", "ratez", "gpt2.toml")
    assert "no such recipe" in refused("try", "rates", "gtp2.toml")
    assert "below high" in refused("try", "rates", "gpt2.toml", "--low", 1, "--high", 0.1)
    assert "steps must be at least 1: 0" in refused("try", "optimizers", "gpt2.toml", "--steps", 0)
    assert "rows must be at least 1: -1" in refused("try", "rates", "gpt2.toml", "--rows", -1)
    assert "steps at least 5" in refused("try", "rates", "gpt2.toml", "--steps", 3)


def test_remedies_of_a_recipe(here: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hornbook.stages.stability.SEEDS", 1)
    outcome = command("try", "stability", "gpt2.toml", "--html", "new/held.html")
    assert outcome.code == 0, outcome.err
    assert all(f"\n{remedy} " in outcome.out for remedy in ("as it is", "z-loss 1e-4", "QK-norm", "the guard alone"))
    record = json.loads((here / "new" / "held.json").read_text(encoding="utf-8"))
    assert record["steps"] == 2 and record["settings"]["rows"] == "2" and (here / "new" / "held.png").stat().st_size > 0
