"""Commands as a user gives them, run in this process, and small material for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hornbook.cli.main import run
from hornbook.config import from_toml
from hornbook.stages.runs import pretrain_run
from hornbook.stages.settings import Recipe
from hornbook.stages.voice import Silent

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
    lines = [" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(6 * documents)]
    return "\n\n".join("\n".join(lines[start : start + 6]) for start in range(0, len(lines), 6)) + "\n"


def furnished(folder: Path) -> Path:
    """A folder with a text and two small recipes."""
    (folder / "prose.txt").write_text(prose(120), encoding="utf-8")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    (folder / "gpt2.toml").write_text(GPT2, encoding="utf-8")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, furnished."""
    monkeypatch.chdir(tmp_path)
    return furnished(tmp_path)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the shape of GPT-2, hardly trained: it reads 64 tokens and no more."""
    folder = furnished(tmp_path_factory.mktemp("gpt2"))
    recipe = from_toml(Recipe, folder / "gpt2.toml")
    return pretrain_run(replace(recipe, out=str(folder / "run"), data=str(folder / "prose.txt")), Silent(), "")
