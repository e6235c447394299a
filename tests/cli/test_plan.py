"""`hornbook plan`: what it says of sizes, of published configs and of a model's folder, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hornbook
from hornbook.cli.main import run
from tests.reference.published_configs import PUBLISHED

Command = Callable[..., Any]
Refused = Callable[..., str]


def told(command: Command, *words: object) -> str:
    """What the command prints, on one line."""
    outcome = command("plan", *words)
    assert outcome.code == 0, outcome.err
    return " ".join(outcome.out.split())


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("words", "count"),
    [("7B", 7 * 10**9), ("7e9", 7 * 10**9), ("124M", 124 * 10**6), ("1.5T", 15 * 10**11), ("350k", 350_000), ("81", 81)],
)  # fmt: skip
def test_a_size_in_words(words: str, count: int, here: Path, command: Command) -> None:
    assert json.loads(command("plan", words, "--json").out)["parameters"]["total"] == count


def test_a_size_says_bytes_in_both_units_and_what_training_takes(here: Path, command: Command) -> None:
    said = told(command, "7B")
    for row in ("fp32 4 28 26.08", "bf16 2 14 13.04", "int8 1 7 6.519", "int4 0.5 3.5 3.26", "total 16 112 104.3 16 112 104.3"):
        assert row in said
    assert "GB (10^9) GiB (2^30)" in said and "4 times fp32 weights" in said and "8 times bf16 weights" in said
    assert "master weights 4 28 26.08 first moment" in said and "Activations are not in it" in said


def test_a_size_needs_no_torch() -> None:
    script = "import sys; from hornbook.cli.main import run; run(['plan', '7B']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "False\n"


def test_a_config_alone(here: Path, command: Command) -> None:
    folder = write(here / "gpt2", PUBLISHED["gpt2"].config)
    said = told(command, folder / "config.json")
    assert "124,439,808 parameters (gpt2)" in said and "embedding 39,383,808 31.65%" in said
    assert "Tied: 38,597,376 weights" in said and "36,864 bytes in bf16" in said and "for 1,024 tokens" in said
    assert "Vocabulary" not in said
    record, alone = (json.loads(command("plan", path, "--json").out) for path in (folder, folder / "config.json"))
    assert record | {"asked": ""} == alone | {"asked": ""}
    assert sum(record["parameters"]["groups"].values()) == record["parameters"]["total"] == 124_439_808


def test_more_rows_than_tokens(here: Path, command: Command, data_folder: Path) -> None:
    folder = write(here / "qwen", PUBLISHED["qwen3-8b"].config)
    for file in (data_folder / "tokenizers" / "qwen3").glob("*.json"):
        (folder / file.name).symlink_to(file)
    assert "151,936 rows for 151,669 tokens (151,643 base + 26 added): 267 rows stand for no token" in told(command, folder)


def test_a_model_folder_and_its_run(gpt2: Path, command: Command, tmp_path: Path) -> None:
    model = hornbook.load(gpt2)[0]
    (tmp_path / "model").symlink_to(gpt2)
    for path in (gpt2, tmp_path):
        record = json.loads(command("plan", path, "--json").out)
        assert record["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
        assert record["vocabulary"]["rows"] == model.config["vocab_size"] and record["vocabulary"]["spare"] == 0


def test_fewer_rows_than_tokens(gpt2: Path, here: Path, refused: Refused) -> None:
    config = json.loads((gpt2 / "config.json").read_text())
    folder = write(here / "small", config | {"vocab_size": config["vocab_size"] - 1})
    (folder / "tokenizer.json").symlink_to(gpt2 / "tokenizer.json")
    last = max(json.loads((gpt2 / "tokenizer.json").read_text())["added_tokens"], key=lambda token: int(token["id"]))
    error = refused("plan", folder)
    assert repr(last["content"]) in error and f"give the embedding {config['vocab_size']} rows" in error


@pytest.mark.parametrize("size", ["7Q", "0B", "0.5", "+7B", "1e99", "7B7", "1,5B", "2e9T"])
def test_a_size_that_is_none(size: str, here: Path, refused: Refused) -> None:
    assert "is no size" in refused("plan", size)


def test_a_model_that_is_not_there(here: Path, refused: Refused) -> None:
    assert "nothing at that path" in refused("plan", "runs/nowhere")
    assert "nothing at that path" in refused("plan", "7B.json")
    assert "no config.json in it" in refused("plan", here)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "does not say which model"), ("[]", "JSON object"), ("{", "cannot be read"),
        ('{"model_type": "lama"}', "did you mean 'llama'?"), ('{"model_type": "gpt2"}', "no field 'layer_norm_epsilon'"),
        (json.dumps(PUBLISHED["gpt2"].config | {"n_embd": -3}), "impossible value"),
        (json.dumps(PUBLISHED["gpt2"].config | {"vocab_size": 10**18}), "impossible value"),
    ],
)  # fmt: skip
def test_a_config_that_says_no_model(text: str, expected: str, here: Path, refused: Refused) -> None:
    (here / "config.json").write_text(text)
    assert expected in refused("plan", "config.json")


def test_one_of_several_processes(here: Path, command: Command, refused: Refused) -> None:
    """7e9 parameters of 4 bytes on 8 copies: the weights alone are 28 GB, an eighth 3.5 GB; a ring sends 7/8."""
    said = told(command, "7B", "--parallel.data", 8, "--parallel.zero", 1)
    assert "One of 8 processes" in said and "gradients 28 26.08" in said and "first moment 3.5 3.26" in said
    assert "sent per step: data 49 45.63" in said
    folder = write(here / "gpt2", PUBLISHED["gpt2"].config)
    record = json.loads(command("plan", folder, "--parallel.pipeline", 2, "--json").out)["processes"]
    first, last = record["stages"]
    assert first["sent_per_step"]["total"] == last["sent_per_step"]["total"] == 4 * (16 * 256 * 768 + 50257 * 768)
    assert "has no layers" in refused("plan", "7B", "--parallel.tensor", 2)
    assert "set rows to 21 or 24" in refused("plan", "7B", "--parallel.data", 3, "--rows", 22)
    assert "and there is one" in refused("plan", "7B", "--parallel.zero", 1)


def test_help_of_plan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(["plan", "--help"])
    assert left.value.code == 0 and "1.5T" in capsys.readouterr().out
