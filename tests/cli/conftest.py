"""Commands as a user gives them, run in this process, and small material for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hornbook.cli.main import run

TINY = """
corpus_bytes = 60_000
conversations = 40
vocab = 400
context = 64
rows = 2
save_seconds = 0.0
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 1
num_key_value_heads = 1
"""
GPT2 = """
out = "runs/gpt2"
data = "prose.txt"
vocab = 400
context = 64
rows = 2
steps = 2
save_seconds = 0.0
[model]
model_type = "gpt2"
n_embd = 32
n_layer = 1
n_head = 2
n_positions = 64
layer_norm_epsilon = 1e-5
activation_function = "gelu_new"
"""


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, its result and its words."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("generate", folder, "--prompt", "x")` is `hornbook generate ...` in this process."""

    def give(*words: object) -> Outcome:
        capsys.readouterr()
        code = run([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return give


@pytest.fixture
def refused(command: Command) -> Callable[..., str]:
    """The error of a command that must end with exit code 2, one screen of words, a `Fix:` line and no traceback."""

    def give(*words: object) -> str:
        outcome = command(*words)
        error = outcome.err[outcome.err.find("Error: ") :]
        assert outcome.code == 2, outcome.err
        assert "Traceback" not in outcome.err
        assert error.startswith("Error: ") and error.splitlines()[-1].startswith("Fix:   "), outcome.err
        assert len(error.splitlines()) <= 5 and "None" not in error
        return error

    return give


def prose(documents: int, seed: int = 0) -> str:
    """Text of short lines, made of invented words that come often enough to be merged, in paragraphs."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abdeghiklmnoprstu", k=draw.randint(2, 9))) for _ in range(400)]
    lines = lambda: "\n".join(" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(6))  # noqa: E731
    return "\n\n".join(lines() for _ in range(documents)) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a text and two small recipes."""
    (tmp_path / "prose.txt").write_text(prose(120), encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    (tmp_path / "gpt2.toml").write_text(GPT2, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path
