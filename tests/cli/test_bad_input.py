"""Whatever a user gives that cannot be used: what, where, why and a `Fix:` line, exit code 2, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Refused = Callable[..., str]
Command = Callable[..., Any]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but the lock and the record of times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "timings.jsonl")
    }


# --- data -----------------------------------------------------------------------------------------------------------------


def cut_gzip(path: Path) -> None:
    text = os.urandom(60_000).hex().encode()
    path.write_bytes(gzip.compress(text)[:20_000])


DATA = {
    "empty.txt": (lambda path: path.touch(), ["empty.txt", "empty file"]),
    "folder": (lambda path: path.mkdir(), ["folder", "empty"]),
    "picture.txt": (lambda path: path.write_bytes(bytes(range(256)) * 40), ["picture.txt", "binary"]),
    "picture.png": (lambda path: path.write_bytes(bytes(range(256)) * 40), ["picture.png", "other format"]),
    "latin.txt": (lambda path: path.write_bytes("one\ntwo\ncafé\n".encode("latin-1")), ["latin.txt:3", "bad utf-8", "iconv"]),
    "line.txt": (lambda path: path.write_bytes(b"a" * 100_000_000), ["line.txt:1", "too long"]),
    "cut.txt.gz": (cut_gzip, ["cut.txt.gz", "damaged"]),
    "short.txt": (lambda path: path.write_text("One short line.\n"), ["short.txt", "too little text"]),
    "bad.jsonl": (lambda path: path.write_text('{"text": "a"\n'), ["bad.jsonl:1", "bad json"]),
    "fields.jsonl": (lambda path: path.write_text('{"body": "a"}\n'), ["fields.jsonl:1", "no text"]),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_read(name: str, here: Path, refused: Refused) -> None:
    make, expected = DATA[name]
    make(here / name)
    error = refused("prepare", "--data", name, "--out", "out")
    assert [words for words in expected if words not in error] == []
    assert snapshot(here / "out") == {}


def test_data_that_is_not_there_offers_the_near_name(here: Path, refused: Refused) -> None:
    assert "did you mean 'prose.txt'?" in refused("prepare", "--data", "prose.tx", "--out", "out")
    assert "there is no folder" in refused("prepare", "--data", "nowhere/at/all.txt", "--out", "out")
    assert "no file matches" in refused("prepare", "--data", "*.parquet", "--out", "out")
    assert "did you mean 'shakespeare'?" in refused("prepare", "--data", "shakespear", "--out", "out")


def test_too_little_text_for_the_vocabulary(here: Path, refused: Refused) -> None:
    error = refused("prepare", "--data", "prose.txt", "--vocab", "100000", "--out", "out")
    assert "too little text for vocab=100000" in error and "or less" in error
    assert (here / "out" / "corpus" / "train.jsonl").exists()  # what was finished stays


def test_a_language_that_the_town_does_not_speak(here: Path, refused: Refused) -> None:
    assert "known: en, zh" in refused("quickstart", "--language", "fr", "--steps", 2, "--out", "out")


def test_bad_records_among_good_ones_are_counted_and_said(here: Path, command: Command) -> None:
    good = [json.dumps({"text": f"The {n}th record tells of {n * n} apples, {n + 3} pears and a basket."}) for n in range(200)]
    bad = [b'{"text": "cut', b'{"text": "caf\xe9"}', b'{"text": "a\\u0000b"}', b'{"body": "x"}', b'{"text": 3}', b"[" * 2000]
    rows = [row.encode() for row in good]
    for number, row in enumerate(bad):
        rows.insert(20 * number, row)
    (here / "rows.jsonl").write_bytes(b"\n".join(rows))
    outcome = command("prepare", "--data", "rows.jsonl", "--vocab", 300, "--out", "out")
    funnel = json.loads((here / "out" / "corpus" / "funnel.json").read_text())
    counts = {reason: row["documents"] for reason, row in funnel["rejected"].items()}
    assert counts == {"bad json": 1, "bad utf-8": 1, "binary": 1, "no text": 2, "too deep": 1}
    assert funnel["rejected"]["bad utf-8"]["examples"][0].startswith("rows.jsonl:21: ")
    assert funnel["in"]["documents"] == len(good) == funnel["out"]["documents"]
    assert f"{len(bad)} unreadable" in outcome.err


# --- recipes and flags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rows = 2", "rowz = 2", ["gpt2.toml:6", "did you mean 'rows'?"]),
        ("rows = 2", "rows = 'two'", ["gpt2.toml:6", "rows must be int"]),
        ("rows = 2", "rows = 0", ["gpt2.toml:6", "at least 1"]),
        ("rows = 2", "rows = = 2", ["gpt2.toml:6", "not a TOML file"]),
        ("rows = 2", "optimizer = 'adamm'", ["gpt2.toml:6", "did you mean 'adam'?"]),
        ("rows = 2", "momentum = 1.5", ["gpt2.toml:6", "momentum must be at least 0 and below 1: 1.5"]),
        ("rows = 2", "beta2 = 1.0", ["gpt2.toml:6", "beta2 must be at least 0 and below 1"]),
        ("rows = 2", "decay = 'constant'\ndecay_steps = 1", ["gpt2.toml:7", "decay_steps is for linear"]),
        ("rows = 2", "vocab_multiple = 0", ["gpt2.toml:6", "at least 1"]),
        ("rows = 2", "precision = 'fp7'", ["gpt2.toml:6", "did you mean 'fp"]),
        ("rows = 2", "decay = 'liner'", ["gpt2.toml:6", "did you mean 'linear'?"]),
        ('out = "runs/gpt2"', "", ["gpt2.toml", "'out' is missing"]),
        ("vocab = 400", "split = 'cl100'", ["did you mean 'cl100k'?"]),
        ('model_type = "gpt2"', 'model_type = "gpt3"', ["[model]", "did you mean 'gpt2'?"]),
        ("n_embd = 32", "", ["[model]", "'n_embd'"]),
        ("n_embd = 32", "n_embd = '32'", ["[model]", "impossible value"]),
        ("n_positions = 64", "n_positions = 32", ["[model]", "reads at most 32", "n_positions"]),
    ],
)
def test_a_recipe_that_cannot_be_used(old: str, new: str, expected: list[str], here: Path, refused: Refused) -> None:
    path = here / "gpt2.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    error = refused("pretrain", "gpt2.toml")
    assert [words for words in expected if words not in error] == []


def test_a_model_is_looked_at_before_the_corpus_is_made(here: Path, refused: Refused) -> None:
    refused("pretrain", "gpt2.toml", "--model.n-layer", 0, "--model.n-positions", 8)
    assert "invalid choice 'fp7'" in refused("pretrain", "gpt2.toml", "--precision", "fp7")
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["frobnicate"], "hornbook --help lists the verbs"),
        (["quikstart"], "did you mean 'quickstart'?"),
        (["tokenizer", "trian"], "did you mean 'train'?"),
        (["pretrain"], "pretrain recipes/town.toml"),
        (["pretrain", "absent.toml"], "no such recipe"),
        (["pretrain", "."], "Is a directory"),
        (["sft", "gpt2.toml"], "unknown key 'out'"),
        (["quickstart", "--langage", "zh"], "did you mean --language?"),
        (["quickstart", "--minutes", "soon"], "--minutes"),
        (["quickstart", "--minutes", "-1"], "above 0"),
        (["quickstart", "--steps", "0"], "at least 1"),
        (["quickstart", "--seed", "-1"], "seed must be at least 0: -1"),
        (["quickstart", "--vocab"], "--vocab"),
        (["pretrain", "gpt2.toml", "--stps", "3"], "did you mean --steps?"),
        (["pretrain", "gpt2.toml", "--context", "-5"], "context must be at least 1"),
        (["pretrain", "gpt2.toml", "--parallel.zero", "3"], "Fix:   set parallel.data to 2 or more, or parallel.zero to 0"),
        (["pretrain", "gpt2.toml", "--parallel.sequence"], "Fix:   set parallel.tensor, or leave sequence out"),
        (
            ["pretrain", "gpt2.toml", "--parallel.sequence", "--parallel.tensor", "3"],
            "context must be a multiple of parallel.tensor",
        ),
        (["pretrain", "gpt2.toml", "--tf32", "true"], "Fix:   a switch takes no value: --tf32, or --no-tf32"),
        (["pretrain", "gpt2.toml", "--parallel.sequence", "False"], "--parallel.sequence, or --parallel.no-sequence"),
        (["pretrain", "gpt2.toml", "--rows", "true"], "--help lists the options"),
        (["pretrain", "gpt2.toml", "--seed", "-1"], "seed must be from 0 to 9223372036854775807: -1"),
        (["pretrain", "gpt2.toml", "--seed", str(2**63)], "seed must be from 0 to 9223372036854775807"),
        (["pretrain", "gpt2.toml", "--sigmas", "-3"], "sigmas must be at least 0 and finite: -3.0"),
        (["pretrain", "gpt2.toml", "--sigmas", "nan"], "sigmas must be at least 0 and finite: nan"),
        (["pretrain", "gpt2.toml", "--weight-decay", "-1"], "weight_decay must be at least 0 and finite: -1.0"),
        (["pretrain", "gpt2.toml", "--weight-decay", "inf"], "weight_decay must be at least 0 and finite"),
        (["pretrain", "gpt2.toml", "--save-seconds", "-1"], "save_seconds must be at least 0: -1.0"),
        (["pretrain", "gpt2.toml", "--workers", "500"], "workers must be from 0 to 64: 500"),
        (["pretrain", "gpt2.toml", "--device", "cuda"], "use --device auto"),
        (["quickstart", "--out", "out", "--device", "cdua"], "did you mean 'cuda'?"),
        (["generate"], "MODEL"),
        (["generate", "m", "--n", "0"], "at least 1"),
        (["generate", "m", "--temperature", "-1"], "--temperature"),
        (["chat", "m", "--top-p", "1.5"], "--top-p"),
        (["eval", "m"], "--task or --text"),
        (["eval", "m", "--text", "prose.txt", "--limit", "0"], "--limit"),
        (["export", "m"], "--out"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_read(words: list[str], expected: str, here: Path, refused: Refused) -> None:
    if words[-1] == "cuda" and not no_cuda():
        pytest.skip("this machine has a CUDA device")
    assert expected.lower() in refused(*words).lower()
    assert not (here / "out").exists()


def no_cuda() -> bool:
    import torch

    return not torch.cuda.is_available()


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_a_default(here: Path, refused: Refused) -> None:
    (here / "small.toml").write_text('data = "prose.txt"\nseed = 5\nvocab = 400\n')
    refused("quickstart", "--recipe", "small.toml", "--steps", 2, "--vocab", 60_000, "--seed", 6, "--out", "out")
    recipe = json.loads((here / "out" / "plan.json").read_text())["recipe"]
    assert (recipe["data"], recipe["seed"], recipe["vocab"], recipe["steps"]) == ("prose.txt", 6, 60_000, 2)


def test_a_recipe_for_a_reader_is_no_quickstart(here: Path, refused: Refused) -> None:
    (here / "masked.toml").write_text('objective = "masked"\n')
    assert "hornbook pretrain masked.toml" in refused("quickstart", "--recipe", "masked.toml", "--out", "out")


def test_v_shows_the_traceback_and_the_same_error(here: Path, command: Command, refused: Refused) -> None:
    error = refused("prepare", "--data", "absent.txt", "--out", "out")
    verbose = command("prepare", "--data", "absent.txt", "--out", "out", "-v")
    assert verbose.code == 2 and verbose.err.endswith(error)
    assert "Traceback (most recent call last)" in verbose.err


# --- models ---------------------------------------------------------------------------------------------------------------


ASKING = [["generate", "--prompt", "x"], ["chat", "--ask", "x"], ["eval", "--text", "prose.txt"], ["export", "--out", "new"]]


@pytest.mark.parametrize("words", ASKING, ids=lambda words: words[0])
def test_a_model_that_is_not_there_or_not_finished(words: list[str], here: Path, refused: Refused) -> None:
    verb, *rest = words
    assert "there is nothing at that path" in refused(verb, "nowhere", *rest)
    assert "no config.json" in refused(verb, ".", *rest)
    (here / "begun").mkdir()
    (here / "begun" / "plan.json").write_text("{}")
    assert "no finished model yet" in refused(verb, "begun", *rest)


def test_a_prompt_over_the_context(gpt2: Path, here: Path, refused: Refused) -> None:
    for words in (["generate", gpt2, "--prompt", "fox " * 200], ["chat", gpt2, "--ask", "fox " * 200]):
        assert "the model reads at most 64" in refused(*words)


def test_a_task_that_cannot_be_scored(gpt2: Path, here: Path, refused: Refused) -> None:
    (here / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    assert "rows.jsonl:2" in refused("eval", gpt2, "--task", "rows.jsonl")
    (here / "void.jsonl").touch()
    assert "void.jsonl" in refused("eval", gpt2, "--task", "void.jsonl")
    assert "no such task file" in refused("eval", gpt2, "--task", "absent.jsonl")


def test_an_export_replaces_nothing(gpt2: Path, here: Path, refused: Refused) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("years of work")
    for out in ("mine", "prose.txt"):
        before = snapshot(here)
        refused("export", gpt2, "--out", out)
        assert snapshot(here) == before


# --- output folders -------------------------------------------------------------------------------------------------------

BEGIN = ["quickstart", "--data", "prose.txt", "--recipe", "tiny.toml", "--steps", 2, "--out", "out"]


@pytest.fixture
def begun(here: Path, refused: Refused) -> Path:
    """A quickstart that made its plan and its corpus, and stopped at a vocabulary that the text cannot fill."""
    assert "too little text" in refused(*BEGIN, "--vocab", 50_000)
    return here / "out"


def same_again(refused: Refused, *more: object) -> str:
    return refused(*BEGIN, "--vocab", 50_000, *more)


def test_a_folder_of_another_run(begun: Path, refused: Refused) -> None:
    before = snapshot(begun)
    error = same_again(refused, "--seed", 7)
    assert "seed was 0 and is now 7" in error and "--vocab 50000" in error  # the fix is the command that continues it
    (begun.parent / "tiny.toml").write_text("rows = 3\n")
    assert "recipe was" in same_again(refused)
    assert snapshot(begun) == before


def test_a_folder_of_another_version(begun: Path, refused: Refused) -> None:
    plan = json.loads((begun / "plan.json").read_text())
    (begun / "plan.json").write_text(json.dumps(plan | {"version": "0.0.1"}))
    before = snapshot(begun)
    assert "0.0.1 made it" in same_again(refused)
    assert snapshot(begun) == before


@pytest.mark.parametrize("damage", [b"", b'{"version": ', b"[]", b"\xff\xfe"])
def test_a_plan_that_cannot_be_read(damage: bytes, begun: Path, refused: Refused) -> None:
    (begun / "plan.json").write_bytes(damage)
    assert "plan.json" in same_again(refused)


def test_a_plan_that_lacks_a_part(begun: Path, refused: Refused) -> None:
    plan = json.loads((begun / "plan.json").read_text())
    for part in set(plan) - {"version"}:
        (begun / "plan.json").write_text(json.dumps({key: value for key, value in plan.items() if key != part}))
        assert f"it has no '{part}'" in same_again(refused)


@pytest.mark.parametrize(
    "words",
    [
        ["quickstart", "--steps", 2], ["prepare", "--data", "prose.txt"], ["tokenizer", "train", "--data", "prose.txt"],
        ["pretrain", "gpt2.toml"],
    ],
    ids=lambda words: str(words[0]),
)  # fmt: skip
def test_a_folder_that_holds_something_else(words: list[object], here: Path, refused: Refused) -> None:
    """Above all, a user's own `corpus` is not taken for ours and replaced, nor the recipe that lies beside it."""
    (here / "corpus").mkdir()
    (here / "corpus" / "diary.txt").write_text("dear diary")
    (here / "recipe.toml").write_text("# mine\n")
    before = snapshot(here)
    assert "holds something else" in refused(*words, "--out", ".")
    assert "a file stands where a folder is needed" in refused(*words, "--out", "prose.txt")
    assert snapshot(here) == before
    assert not (here / ".lock").exists()


def test_a_folder_of_ours_with_a_strange_part(here: Path, refused: Refused) -> None:
    refused("prepare", "--data", "prose.txt", "--vocab", 100_000, "--out", "out")
    shutil.rmtree(here / "out" / "corpus")
    (here / "out" / "corpus").mkdir()
    (here / "out" / "corpus" / "diary.txt").write_text("dear diary")
    assert "did not write" in refused("prepare", "--data", "prose.txt", "--out", "out")
    assert (here / "out" / "corpus" / "diary.txt").read_text() == "dear diary"


def test_a_mistyped_name_does_not_spoil_the_folder(here: Path, refused: Refused) -> None:
    refused("quickstart", "--data", "proze.txt", "--steps", 2, "--out", "out")
    refused("quickstart", "--data", "prose.txt", "--steps", 2, "--recipe", "absent.toml", "--out", "out")
    assert "too little text for vocab=50000" in same_again(refused)  # so the plan was made anew and the corpus too


def test_a_folder_in_use_by_another_process(begun: Path, refused: Refused) -> None:
    script = "import fcntl, os, sys\nfile = open(sys.argv[1], 'a+')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
    script += "file.truncate(0)\nprint(os.getpid(), file=file, flush=True)\nprint('held', flush=True)\nsys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", script, begun / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        before = snapshot(begun)
        error = same_again(refused)
        assert "another process is writing this folder" in error and f"process {other.pid}" in error
        assert snapshot(begun) == before
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert "too little text" in same_again(refused)  # a dead process holds nothing


# --- a full disk ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Python ignores the signal that comes with the limit, so a write past it fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "finished"), [(20_000, set()), (110_000, {"corpus", "tokenizer", "shards"})])
def test_a_write_that_fails_loses_nothing(size: int, finished: set[str], here: Path, command: Command) -> None:
    with files_of_at_most(size):
        outcome = command("pretrain", "gpt2.toml")
    assert outcome.code == 2, outcome.err
    assert os.strerror(errno.EFBIG) in outcome.err and "Fix:   " in outcome.err
    out = here / "runs" / "gpt2"
    assert {path.parent.name for path in out.glob("*/manifest.json")} == finished
    assert list(out.rglob("*writing*")) == []
    assert command("pretrain", "gpt2.toml").code == 0


def test_a_full_disk(here: Path, command: Command, refused: Refused) -> None:
    disk = here / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        error = refused("prepare", "--data", "prose.txt", "--vocab", 400, "--out", "disk/run")
        assert os.strerror(errno.ENOSPC) in error and "disk/run" in error and "free some space" in error
        shutil.rmtree(disk / "run")
        words = ["pretrain", "gpt2.toml", "--out", "disk/run"]
        subprocess.run(["mount", "-o", "remount,size=250k", disk], check=True)
        error = refused(*words)  # before the corpus is made: the states would not fit
        assert not (disk / "run").exists()
        assert "bytes are needed" in error and "disk/run" in error and "free some space" in error
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert command(*words).code == 0
    finally:
        subprocess.run(["umount", disk], check=True)
