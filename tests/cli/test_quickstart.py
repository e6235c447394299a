"""`hornbook quickstart` whole and small: what it writes, that a second call keeps it, and that stopping changes nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hornbook
from hornbook.files import sha256, verified

Command = Callable[..., Any]
STAGES = ("corpus", "tokenizer", "shards", "pretrain", "sft", "evaluate", "export", "report")
PROSE = ["quickstart", "--data", "prose.txt", "--recipe", "tiny.toml", "--steps", "12"]


def weights(run: Path) -> str:
    return sha256(run / "model" / "model.safetensors")


def test_the_town_from_nothing_to_a_model_and_again(here: Path, command: Command) -> None:
    words = ["quickstart", "--steps", 4, "--recipe", "tiny.toml", "--out", "run"]
    first = command(*words)
    assert first.code == 0, first.err
    run = here / "run"
    for folder in ("corpus", "tokenizer", "shards", "pretrained", "tuned", "evaluation", "model"):
        verified(run / folder)
    record = json.loads((run / "report.json").read_text())
    assert record["lineage"]["final"] == weights(run)
    assert {"facts", "opposites", "sums", "stories"} <= set(record["evaluation"]["questions"])
    assert record["evaluation"]["stories"]["total"] > 0
    page = (run / "report.html").read_text()
    assert record["command"] in page and not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows if row["stage"] == "pretrain") == 4
    assert {row["stage"] for row in rows if "held_out_bits_per_byte" in row} == {"pretrain", "sft"}
    assert "chat run" in first.out and "report.html" in first.out

    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    second = command(*words)
    assert second.code == 0
    assert second.err.count("kept from before") == len(STAGES) - 1  # the report is written anew
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before

    talk(run, command)


def talk(run: Path, command: Command) -> None:
    """The finished run answers, continues, is scored and is exported."""
    assert command("chat", run, "--ask", "Where does Tom live?", "--max-tokens", 5).code == 0
    asked = ("generate", run, "--prompt", "The", "--max-tokens", 5, "--json")
    rows = command(*asked, "-n", 2, "--temperature", 1).out.splitlines()
    assert command(*asked, "--n", 2).out.splitlines() == rows  # more than one asks for draws
    assert command(*asked).out == command(*asked, "--temperature", 0).out
    assert [json.loads(row)["prompt"] for row in rows] == ["The", "The"]
    score = json.loads(command("eval", run, "--text", "prose.txt", "--json").out)
    assert 0 < score["value"] < 16
    assert command("export", run, "--out", "exported").code == 0
    theirs, ours = hornbook.load("exported")[0], hornbook.load(run)[0]
    assert all(one.equal(other) for one, other in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_a_quickstart_in_the_shape_of_another_family(here: Path, command: Command) -> None:
    """A `[model]` with a model_type is taken whole: nothing of the default shape is left in the published folder."""
    outcome = command("quickstart", "--recipe", "gpt2.toml", "--steps", 2, "--out", "run")
    assert outcome.code == 0, outcome.err
    model = hornbook.load("run")[0]
    assert model.config["model_type"] == "gpt2" and "num_hidden_layers" not in model.config
    shape = json.loads((here / "run" / "report.json").read_text())["plan"]["model"]
    assert (shape["layers"], shape["dim"], shape["heads"], shape["vocab"]) == (1, 32, 2, model.config["vocab_size"])


@pytest.fixture
def uninterrupted(here: Path, command: Command) -> str:
    """The digest of the weights of a run that nothing disturbed."""
    outcome = command(*PROSE, "--out", "whole")
    assert outcome.code == 0, outcome.err
    return weights(here / "whole")


@pytest.mark.slow
def test_the_same_run_in_another_folder_gives_the_same_weights(here: Path, command: Command, uninterrupted: str) -> None:
    assert command(*PROSE, "--out", "elsewhere").code == 0
    assert weights(here / "elsewhere") == uninterrupted
    assert command(*PROSE, "--out", "another", "--seed", 1).code == 0
    assert weights(here / "another") != uninterrupted


def started(out: Path) -> subprocess.Popen[str]:
    script = "import torch; torch.set_num_threads(1); from hornbook.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *PROSE, "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def stopped(out: Path, stage: str, seconds: float, by: signal.Signals) -> tuple[int, str]:
    """Run until so long after `stage` began, and stop it there; its exit code and its words."""
    process = started(out)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(f"{stage}:"):
            time.sleep(seconds)
            process.send_signal(by)
            break
    said += process.stderr.read()
    return process.wait(timeout=60), said


def finished_after(moments: list[tuple[str, float, signal.Signals]], out: Path) -> str:
    for moment in moments:
        code, said = stopped(out, *moment)
        ended = "report.html (" in said and code == -signal.SIGINT  # the signal came after the last line, while Python ended
        assert ended or code in (0, -signal.SIGKILL, 130), f"{moment}: {code}\n{said}"
        assert code != 130 or "ontinue" in said  # the words that name the way on
        assert "Traceback" not in said
    last = started(out)
    said = last.communicate(timeout=120)[1]
    assert last.returncode == 0, said
    return weights(out)


def drawn(count: int) -> list[tuple[str, float, signal.Signals]]:
    """Random instants; pytest shows them where the test fails, so that they can be tried again."""
    draw = random.Random()
    return [(draw.choice(STAGES), draw.uniform(0, 0.5), signal.SIGKILL) for _ in range(count)]


def test_stopped_at_random_instants_it_ends_with_the_same_weights(here: Path, uninterrupted: str) -> None:
    moments = [*drawn(1), ("pretrain", random.uniform(0.1, 0.3), signal.SIGINT)]
    assert finished_after(moments, here / "run") == uninterrupted, moments


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_weights(here: Path, uninterrupted: str) -> None:
    moments = drawn(20)
    assert finished_after(moments, here / "run") == uninterrupted, moments
