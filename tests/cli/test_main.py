"""The command itself: help, results apart from progress, pipes, and the exit codes of what goes well."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import hornbook
from hornbook.cli.console import Plain, again, clock, figures_line
from hornbook.cli.main import ALONE, VERBS, run
from hornbook.cli.try_out import TryOut
from hornbook.parallel.team import PATIENCE

Command = Callable[..., Any]


def test_a_rank_tells_what_it_met_alone_when_the_others_had_time_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that torchrun ends meanwhile, since the first has said the same, tells nothing: see test_torchrun.py."""
    waited = list[float]()
    monkeypatch.setattr(time, "sleep", waited.append)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back afterwards
    monkeypatch.setenv("RANK", "1")
    assert run(["pretrain", "absent.toml"]) == 2 and waited == [ALONE] and PATIENCE > ALONE
    monkeypatch.undo()
    assert "Rank 1: Error: no such recipe: absent.toml\n" in capsys.readouterr().err


def test_the_command_that_continues_is_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "hornbook pretrain r.toml --steps 9"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for called, says in (("/opt/bin/hornbook", "/opt/bin/hornbook"), ("/opt/hornbook/__main__.py", "python -m hornbook")):
        monkeypatch.setattr(sys, "argv", [called])
        assert again(command) == f"{says} pretrain r.toml --steps 9"
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert again(command) == "torchrun --nproc-per-node 2 -m hornbook pretrain r.toml --steps 9"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert again(command) == "the same torchrun command"


def test_the_help_of_try_names_all_that_can_be_tried() -> None:
    choices = get_args(get_args(get_type_hints(TryOut, include_extras=True)["what"])[0])
    assert len(choices) > 2 and [what for what in choices if what not in VERBS["try"]] == []


def test_help_names_every_verb_and_the_version(command: Command) -> None:
    for words in ([], ["--help"], ["help"]):
        outcome = command(*words)
        assert outcome.code == 0 and all(f"\n  {verb} " in outcome.out for verb in VERBS)
    assert command("--version").out == f"{hornbook.__version__}\n"
    assert "encode" in command("tokenizer", "--help").out


@pytest.mark.parametrize("verb", ["pretrain", "sft"])
def test_help_of_a_recipe_verb_needs_no_recipe(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run([verb, "--help"])
    assert left.value.code == 0 and f"hornbook {verb} RECIPE.toml" in capsys.readouterr().out


def test_results_go_to_stdout_and_progress_to_stderr(here: Path, command: Command) -> None:
    words = ["prepare", "--data", "prose.txt", "--vocab", 400, "--out", "out"]
    outcome = command(*words)
    assert outcome.out == "out/shards\n"
    assert "tokens" in outcome.err and "kept" not in outcome.err
    assert command(*words).err.count("kept from before") == 3
    row = json.loads(command("tokenizer", "encode", "out", "--text", "Bad gold 42", "--json").out)
    assert "".join(row["pieces"]) == "Bad gold 42" and row["bytes"] == 11
    assert command("tokenizer", "train", "--data", "prose.txt", "--vocab", 300, "--out", "t").out == "t/tokenizer\n"
    assert command("prepare", "--data", "prose.txt", "--tokenizer", "t/tokenizer", "--out", "again").out == "again/shards\n"


def test_a_reader_that_goes_away_is_no_error(here: Path, command: Command) -> None:
    assert command("tokenizer", "train", "--data", "prose.txt", "--vocab", 300, "--out", "t").code == 0
    script = "from hornbook.cli.main import main; main()"
    words = [sys.executable, "-c", script, "tokenizer", "encode", "t/tokenizer", "--text", "abc " * 20_000]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=60)) == ("", 0)


def test_a_recipe_and_its_flags_make_a_model_and_a_tuned_one(here: Path, command: Command) -> None:
    outcome = command("pretrain", "gpt2.toml", "--steps", 1, "--model.n-embd", 16, "--out", "run")
    assert outcome.out == "run/pretrained\n" and "n_embd = 16" in outcome.err
    assert hornbook.load("run/pretrained")[0].config["n_embd"] == 16
    (here / "sft.toml").write_text('base = "run"\nsteps = 1\nrows = 2\n')
    assert command("sft", "sft.toml").out == "run/tuned\n"
    assert "kept from before" in command("sft", "sft.toml").err


def test_chat_from_a_pipe_goes_on_after_a_line_that_is_too_long(
    gpt2: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(text: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return command("chat", gpt2, "--max-tokens", 3)

    alone, among = asked("a\n"), asked(f"{'fox ' * 100}\na\n\na\n")
    assert (alone.code, among.code) == (0, 0)
    assert among.err.count("the model reads at most 64") == 1
    assert among.out == alone.out * 2  # each began anew: after the error, and after the empty line


def test_plain_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    voice = Plain()
    voice.begin("pretrain", "ten steps")
    voice.shown -= 60  # as if a minute had passed
    voice.progress(5, 10, {"loss": 1.5, "tokens_per_second": 12_345.0, "unknown": 1.0})
    voice.progress(6, 10, {"loss": 1.4})
    voice.end("done")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "50%" in lines[1] and "loss 1.500" in lines[1] and "12,345" in lines[1] and "unknown" not in lines[1]
    assert (clock(59.6), clock(3600), figures_line({})) == ("1:00", "60:00", "")
