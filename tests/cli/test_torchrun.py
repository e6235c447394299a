"""`torchrun -m hornbook pretrain` on two processes, on real text: the same rows as one process, stopped, killed and continued."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hornbook.files import read_lines
from tests.reference.tiny import furthest

RECIPE = """
out = "unset"
data = "town"
corpus_bytes = 100_000
conversations = 20
vocab = 400
context = 32
rows = 8
accumulate = 2
steps = 40
save_seconds = 1.0
[model]
model_type = "llama"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
rms_norm_eps = 1e-5
hidden_act = "silu"
max_position_embeddings = 32
tie_word_embeddings = true
"""
COPIES = ["--parallel.data", "2", "--parallel.zero", "2"]


def started(recipe: Path, out: Path, processes: int, *flags: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = ["-m", "hornbook", "pretrain", str(recipe), "--out", str(out), *flags]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
        command = [*torchrun, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    out, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    return out + said


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in read_lines(out / "metrics.jsonl") if "loss" in row]


def when_at(out: Path, step: int) -> None:
    until = time.monotonic() + 120
    while not any(row["step"] >= step for row in rows(out)):
        assert time.monotonic() < until, "the run does not get so far"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run of one process, which nothing disturbs."""
    out = recipe.parent / "alone"
    finished(started(recipe, out, 1))
    return out


def test_two_processes_give_one_process_rows_and_one_goes_on_where_two_were_stopped(recipe: Path, alone: Path) -> None:
    out = recipe.parent / "stopped"
    running = started(recipe, out, 2, *COPIES)
    when_at(out, 10)
    asked = time.monotonic()
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert time.monotonic() - asked < 30 and "Stopped and saved" in said
    assert f"Continue with: torchrun --nproc-per-node 2 -m hornbook pretrain {recipe} --out {out} {shlex.join(COPIES)}\n" in said
    assert 10 <= rows(out)[-1]["step"] < 40
    assert "continuing pretrain at step" in finished(started(recipe, out, 1))
    ours, theirs = rows(alone), rows(out)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one["tokens"] == two["tokens"]
        for figure in ("loss", "bits_per_byte", "grad_norm"):
            assert two[figure] == pytest.approx(one[figure], rel=1e-4)
    weights = [load_file(folder / "pretrained" / "model.safetensors") for folder in (alone, out)]
    assert furthest(*weights) < 1e-4


@pytest.mark.slow
def test_two_compiled_copies_give_one_process_rows(recipe: Path, alone: Path) -> None:
    """What inductor makes of the blocks, inside of copies that share out gradients."""
    out = recipe.parent / "compiled"
    assert "compiling took" in finished(started(recipe, out, 2, *COPIES, "--compile"))
    for one, two in zip(rows(alone), rows(out), strict=True):
        for figure in ("loss", "grad_norm"):
            assert two[figure] == pytest.approx(one[figure], rel=1e-4)


@pytest.mark.slow
def test_two_stages_of_a_pipeline_give_one_process_rows_and_looks(recipe: Path, alone: Path) -> None:
    """Held-out text and samples too, at which the first stage looks for both."""
    out = recipe.parent / "stages"
    finished(started(recipe, out, 2, "--parallel.pipeline", "2"))
    ours, theirs = (read_lines(folder / "metrics.jsonl") for folder in (alone, out))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    looks = 0
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() - two.keys() <= {"flops_per_second", "mfu"}
        for figure in ("loss", "grad_norm", "held_out_bits_per_byte"):
            assert (figure in one) == (figure in two)
            if figure in one:
                looks += figure == "held_out_bits_per_byte"
                assert two[figure] == pytest.approx(one[figure], rel=1e-4)
    assert looks == 4


@pytest.mark.slow
def test_torchrun_goes_on_by_itself_when_a_process_is_killed(recipe: Path) -> None:
    whole, broken = recipe.parent / "whole", recipe.parent / "broken"
    finished(started(recipe, whole, 2, *COPIES))
    running = started(recipe, broken, 2, *COPIES, restarts=1)
    when_at(broken, 15)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    victim = next(pid for pid in children if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    os.kill(int(victim), signal.SIGKILL)
    said = finished(running)
    assert "continuing pretrain at step" in said and "exitcode: -9" in said.replace("exitcode  :", "exitcode:")
    weights = [load_file(folder / "pretrained" / "model.safetensors") for folder in (whole, broken)]
    assert furthest(*weights) == 0, "the same bits as the run that nothing disturbed"


def test_what_cannot_be_run_is_refused_at_once(recipe: Path) -> None:
    said = finished(started(recipe, recipe.parent / "refused", 1, "--parallel.data", "2"), code=2)
    assert "need 2 processes, and there are 1" in said and "torchrun --nproc-per-node 2" in said
    said = finished(started(recipe, recipe.parent / "refused", 1, "--parallel.zero", "1"), code=2)
    assert "zero=1, data=1" in said


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        pytest.param("zero", "3", "set parallel.data to 2 or more, or parallel.zero to 0", marks=pytest.mark.slow),
        ("tensor", "2", "kv_heads must be a multiple of parallel.tensor: kv_heads=1, tensor=2"),
    ],
)
def test_what_all_ranks_refuse_is_told_once_and_before_any_work(flag: str, value: str, says: str, recipe: Path) -> None:
    """As they read the command line, or when they know each other."""
    said = finished(started(recipe, recipe.parent / "refused", 2, f"--parallel.{flag}", value), code=1)
    assert says in said and said.count("Error: ") - said.count("ChildFailedError: ") == 1 == said.count("Fix:   "), said
    assert not (recipe.parent / "refused").exists()


@pytest.mark.slow  # tests/parallel/test_stopped.py shows it sooner, without the command
def test_a_dead_rank_is_named_by_the_others(recipe: Path) -> None:
    """Without torchrun, which would end the others itself."""
    out, port = recipe.parent / "dead", 29500 + os.getpid() % 1000
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "hornbook", "pretrain", str(recipe), "--out", str(out), *COPIES, "--steps", "4000"]
    both = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    when_at(out, 1)
    both[1].kill()
    killed = time.monotonic()
    said = both[0].communicate(timeout=60)[1]
    assert time.monotonic() - killed < 30 and both[0].returncode == 2
    assert f"rank 1 ({os.uname().nodename}, process {both[1].pid}) gives no sign of life" in said
    both[1].communicate()
