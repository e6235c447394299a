"""How long training stands still for a state, how soon a run goes on from one, and how soon a new run begins.

    python -m benchmarks.saving

GPT-2 124M with AdamW, rows of 64 tokens. stall: the loop's wait for a state, which is a copy; the write goes on beside the next
steps. resume: from the start of a process to the end of its first step from that state. start: of `hornbook pretrain
recipes/town.toml` with its corpus made before, to the first row of its figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FILES = ("pretrained", "checkpoints", "metrics.jsonl", "layers.jsonl")
CONFIG = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
CONFIG |= {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}


def trained(folder: Path, steps: int) -> dict[str, Any]:
    """Train up to `steps` with states in the folder, then the seconds of one more state."""
    from hornbook.checkpoint.saver import Saver
    from hornbook.checkpoint.state import Keep, newest_state, snapshot
    from hornbook.data.batches import Batches, StreamRows
    from hornbook.families import build
    from hornbook.model import Undrawn, initialize
    from hornbook.optim.build import build_optimizer
    from hornbook.train.loop import Run, fit, ignore
    from hornbook.train.objective import causal_lm

    with Undrawn():
        model = build(CONFIG)
    if (found := newest_state(folder, ignore)) is None:
        initialize(model, 0)
    optimizer = build_optimizer(model, "adamw", 6e-4)
    ids = np.random.default_rng(0).integers(50257, size=1 << 16).astype(np.uint16)
    batches = Batches(StreamRows(ids, 64, np.ones(50257, np.int64)), 1, 0)
    rows = list[float]()
    run = Run(steps=steps, folder=folder, found=found, save_seconds=1e9, log_every=1, log=lambda row: rows.append(time.time()))
    state = fit(model, batches, causal_lm, optimizer, lambda step: 1.0, run)
    if state.resumed_at is not None:
        return {"resumed_at": state.resumed_at, "stepped": rows[0]}
    stalls = []
    with tempfile.TemporaryDirectory(dir=folder.parent) as other, Saver(Path(other)) as saver:
        for _ in range(3):
            start = time.perf_counter()
            saver.save(snapshot(steps, model, optimizer, batches.state(), {"name": ""}), Keep())
            stalls.append(time.perf_counter() - start)
            saver.finish()
    return {"stalls": stalls, "written": time.perf_counter() - start}


def child(folder: Path, steps: int) -> tuple[dict[str, Any], float]:
    """What `trained` says in a process of its own, and when that began."""
    start = time.time()
    words = [sys.executable, "-m", "benchmarks.saving", "--child", str(folder), "--steps", str(steps)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout)), start


def seconds_to_a_row(out: Path) -> float:
    """How long `hornbook pretrain` takes to its first row, where all before training is kept from an earlier call."""
    words = [sys.executable, "-m", "hornbook", "pretrain", "recipes/town.toml", "--out", str(out), "--steps", "1", "--warmup", "0"]
    subprocess.run(words, check=True, capture_output=True)
    for name in FILES:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (out / "metrics.jsonl").exists():
            if process.poll():
                raise SystemExit("hornbook pretrain failed")
            time.sleep(0.01)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="whose disk holds the states")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "saving.json")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(trained(given.child, given.steps)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        first, _ = child(Path(folder, "states"), 1)
        resumed = [child(Path(folder, "states"), steps) for steps in (2, 3, 4)]
        assert [found["resumed_at"] for found, _ in resumed] == [1, 2, 3]
        started = [seconds_to_a_row(Path(folder, "town")) for _ in range(3)]
    from benchmarks.training import machine

    record = {
        "stall": sorted(first["stalls"])[1], "written": first["written"], "start": sorted(started)[1], "machine": machine(),
        "resume": sorted(found["stepped"] - start for found, start in resumed)[1],
    }  # fmt: skip
    print(f"  stall of a state of GPT-2 124M    {record['stall']:6.2f} s, on the disk after {record['written']:.1f} s")
    print(f"  from a state to the first step    {record['resume']:6.2f} s")
    print(f"  hornbook pretrain to first row    {record['start']:6.2f} s")
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
