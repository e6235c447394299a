"""`hornbook plot`: every picture in every kind of file, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.stages.pictures import KINDS, PICTURES

Command = Callable[..., Any]
Refused = Callable[..., str]
BEGINS = {".svg": b"<?xml", ".png": b"\x89PNG\r\n", ".html": b"<!DOCTYPE html>"}


@pytest.mark.parametrize(("name", "kind"), list(zip(PICTURES, itertools.cycle(KINDS), strict=False)))
def test_a_picture_without_a_model(name: str, kind: str, here: Path, command: Command) -> None:
    out = here / "new" / f"{name}{kind}"
    assert command("plot", name, "--out", out).out == f"{out}\n"
    assert out.read_bytes().startswith(BEGINS[kind])
    if kind == ".html":
        page = out.read_text()
        assert "://" not in page and page.count("<img ") == 1  # nothing to fetch


def test_the_attention_of_a_model(gpt2: Path, here: Path, command: Command) -> None:
    outcome = command("plot", "attention", "--model", gpt2, "--text", "Bad gold", "--layers", 0, "--device", "cpu")
    assert (outcome.code, outcome.out) == (0, "attention.svg\n") and "device: cpu" in outcome.err
    assert (here / "attention.svg").stat().st_size > 5000


def test_what_cannot_be_drawn(gpt2: Path, here: Path, refused: Refused) -> None:
    assert "did you mean 'attention'?" in refused("plot", "atention")
    assert "known: activations, attention, dtypes, mask, rope" in refused("plot", "zzz")
    assert "did you mean '.png'?" in refused("plot", "mask", "--out", "mask.pgn")
    assert "known: .html, .png, .svg" in refused("plot", "mask", "--out", "mask")
    assert "leave out --text" in refused("plot", "mask", "--text", "x")
    assert "needs a model and a text" in refused("plot", "attention", "--model", gpt2)
    assert "nothing at that path" in refused("plot", "attention", "--model", "nowhere", "--text", "x")
    assert "the layers are 0 to 0" in refused("plot", "attention", "--model", gpt2, "--text", "Bad", "--layers", 4)
    assert "there is no layer -1" in refused("plot", "attention", "--model", gpt2, "--text", "Bad", "--layers", "-1")
    (here / "file").touch()
    assert "a file stands where a folder is needed" in refused("plot", "rope", "--out", "file/rope.svg")
    assert list(here.glob("*.svg")) == []
