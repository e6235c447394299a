"""Training tokens per second: hornbook's loop beside nanoGPT's and transformers' Trainer, block by block in one run.

    python -m benchmarks.training --nanogpt CLONE       (a clone of karpathy/nanoGPT; without it that peer is left out)

All train the same GPT-2 shape in float32 from the same weights on the same batches with AdamW, clipped at 1, each in a process of
its own, started as its users start it: hornbook's with the memory settings of `hornbook pretrain` (hornbook/cli/allocator.py);
without them, compiled, and nanoGPT with them are there for information, and so are a step's products of weights alone, which no
step can be faster than. hornbook is `fit` itself, its reading of the data included;
nanoGPT does what its train.py does per step, batches made beforehand; Trainer is Trainer with everything that reports turned off,
timed by a callback that leaves its start out. Blocks of steps take turns, the order turns too; ratios are taken within a round.
--memory adds the peak of one step of GPT-2 124M from the allocator's own record, less weights, moments and gradients in full,
whether or not they are there yet at the peak. --losses is how far the first losses may differ. Peers: see requirements.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.products import Products
from hornbook.adapt.compile import compile_blocks
from hornbook.adapt.dropout import attention_dropout
from hornbook.adapt.recompute import KINDS, recompute
from hornbook.cli.allocator import tunables
from hornbook.data.batches import Batches, StreamRows
from hornbook.families import build, family
from hornbook.families.weights import from_published
from hornbook.optim.build import Optimizers, build_optimizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm

RATE, DECAY, BETAS = 6e-4, 0.1, (0.9, 0.99)
CLOCK = [time.perf_counter]  # --cpu-time: the processor's own seconds, where others use the machine
CHECKED = 4  # steps whose losses are compared
USUAL, COMPILED, WEIGHTS = "hornbook, usual memory", "hornbook, compiled", "hornbook, dropout of weights"
KEPT = "nanoGPT, memory kept"  # as hornbook keeps it
PRODUCTS = "products alone"
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers keeps them the other way round


@dataclass(frozen=True)
class Row:
    """A row of the table: the model, the batch, and the steps of a block."""

    layers: int
    heads: int
    dim: int
    block: int
    batch: int
    dropout: float
    vocab: int
    positions: int
    steps: int

    def config(self) -> transformers.GPT2Config:
        p = self.dropout
        return transformers.GPT2Config(
            vocab_size=self.vocab, n_positions=self.positions, n_embd=self.dim, n_layer=self.layers, n_head=self.heads,
            resid_pdrop=p, embd_pdrop=p, attn_pdrop=p, activation_function="gelu", use_cache=False,
        )  # fmt: skip


ROWS = {
    "4x128": Row(4, 4, 128, 64, 12, 0.0, 65, 64, 40),
    "6x384": Row(6, 6, 384, 256, 8, 0.0, 65, 256, 3),
    "6x384-dropout": Row(6, 6, 384, 256, 8, 0.2, 65, 256, 3),
    "gpt2-124m": Row(12, 12, 768, 512, 1, 0.0, 50257, 1024, 2),
}


def batches(row: Row) -> Batches:
    """Random ids in the loader that `hornbook pretrain` reads with: endless, the same every time."""
    ids = np.random.default_rng(0).integers(row.vocab, size=512 * row.block * row.batch + 1).astype(np.uint16)
    return Batches(StreamRows(ids, row.block, np.ones(row.vocab, np.int64)), row.batch, 0)


class Hornbook:
    """The loop of every run, on the peers' model."""

    def __init__(self, row: Row, theirs: nn.Module, dropout_kind: Literal["weights", "keys"] = "keys"):
        as_dict = {**row.config().to_dict(), "architectures": ["GPT2LMHeadModel"]}
        self.model, self.source = build(as_dict), batches(row)
        published = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
        shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        tied = [name for name, _ in self.model.ties]
        weights = from_published(family(as_dict).weights(as_dict), published, shapes, tied, "memory")
        self.model.load_state_dict(weights, strict=False)
        self.model.tie()
        attention_dropout(self.model, dropout_kind)
        self.optimizer: Optimizers = build_optimizer(self.model, "adamw", RATE, weight_decay=DECAY, betas=BETAS)

    def train(self, steps: int, log: Callable[[float], Any] | None = None) -> float:
        run = Run(steps=steps, log_every=1 if log else steps)
        if log:
            run = replace(run, log=lambda row: log(row["loss"]))
        start = CLOCK[0]()
        fit(self.model, self.source, causal_lm, self.optimizer, lambda step: 1.0, run)
        return CLOCK[0]() - start


class Plain:
    """nanoGPT's loop around a model; `loss` is how that model is asked for it."""

    def __init__(self, row: Row, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor, Tensor], Tensor]):
        self.model, self.optimizer, self.loss, self.source = model.train(), optimizer, loss, batches(row)

    def train(self, steps: int, log: Callable[[float], Any] | None = None) -> float:
        given = [(batch.tokens_bt.contiguous(), batch.targets_bt.contiguous()) for batch in islice(self.source, steps)]
        start = CLOCK[0]()
        for tokens_bt, targets_bt in given:
            for group in self.optimizer.param_groups:
                group["lr"] = RATE
            loss = self.loss(tokens_bt, targets_bt)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if log:
                log(loss.item())
        loss.item()
        return CLOCK[0]() - start


def nanogpt(row: Row, clone: Path, theirs: nn.Module) -> Plain:
    """nanoGPT's model and optimizer, with transformers' weights."""
    found = importlib.util.spec_from_file_location("nanogpt_model", clone / "model.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["nanogpt_model"] = module
    found.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(
            module.GPTConfig(
                block_size=row.positions, vocab_size=row.vocab, n_layer=row.layers, n_head=row.heads, n_embd=row.dim,
                dropout=row.dropout, bias=True,
            )
        )  # fmt: skip
        optimizer = model.configure_optimizers(DECAY, RATE, BETAS, "cpu")
    state = model.state_dict()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if name in state:
                state[name].copy_(value.t() if name.endswith(TRANSPOSED) else value)
    return Plain(row, model, optimizer, lambda tokens, targets: model(tokens, targets)[1])


def copied(row: Row, theirs: nn.Module) -> nn.Module:
    model = transformers.GPT2LMHeadModel(row.config())
    model.load_state_dict(theirs.state_dict())
    return model


def transformers_plain(row: Row, theirs: nn.Module) -> Plain:
    model = copied(row, theirs)
    wide, narrow = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW([{"params": wide, "weight_decay": DECAY}, {"params": narrow, "weight_decay": 0.0}], betas=BETAS)
    return Plain(row, model, optimizer, lambda x, y: F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()))


class Clock(transformers.TrainerCallback):
    """The seconds between the end of Trainer's first step and the end of its last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(CLOCK[0]())


class TrainerPeer:
    """Trainer, with its own optimizer (fused AdamW) and its own data loader, on the same rows."""

    def __init__(self, row: Row, theirs: nn.Module):
        self.row, self.model, self.source = row, copied(row, theirs), batches(row)

    def train(self, steps: int) -> float:
        rows = [{"input_ids": ids, "labels": ids} for batch in islice(self.source, steps + 1) for ids in batch.tokens_bt]
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder, max_steps=steps + 1, per_device_train_batch_size=self.row.batch, learning_rate=RATE,
                weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=1.0, lr_scheduler_type="constant",
                use_cpu=True, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
            )  # fmt: skip
            trainer = transformers.Trainer(self.model, arguments, train_dataset=rows, callbacks=[clock])
            trainer.remove_callback(transformers.PrinterCallback)
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.train()
        return clock.ends[-1] - clock.ends[0]


def losses_agree(ours: Process, theirs: Process, most: float) -> dict[str, Any]:
    """The first steps of both, from the same weights on the same batches."""
    found = {"hornbook": ours.losses(), "nanoGPT": theirs.losses()}
    apart = max(abs(a - b) for a, b in zip(*found.values(), strict=True))
    print("  first losses: " + "; ".join(f"{name} " + " ".join(f"{x:.6f}" for x in each) for name, each in found.items()))
    print(f"  largest difference {apart:.1e} (at most {most:.0e})")
    if apart > most:
        raise SystemExit("hornbook and nanoGPT do not compute the same")
    return {**found, "largest_difference": apart}


def peer(name: str, row: Row, clone: Path | None) -> Any:
    """The one of that name, with the weights that all begin from."""
    if name == PRODUCTS:
        return Products(row.block * row.batch, row.layers, row.dim, row.vocab, CLOCK[0])
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(row.config())
    if name.startswith("nanoGPT"):
        assert clone is not None
        return nanogpt(row, clone, theirs)
    if name == "transformers Trainer":
        return TrainerPeer(row, theirs)
    ours = Hornbook(row, theirs, "weights" if name == WEIGHTS else "keys")
    if name == COMPILED:
        compile_blocks(ours.model)
    return ours


class Process:
    """A peer in a process of its own, started as its users start it: hornbook's keeps its memory, as `hornbook pretrain` does."""

    def __init__(self, name: str, row: str, clone: Path | None):
        environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
        if name.startswith("hornbook") and name != USUAL or name in (KEPT, PRODUCTS):
            environment["GLIBC_TUNABLES"] = tunables()
        words = [
            "--peer",
            name,
            "--rows",
            row,
            *(["--nanogpt", str(clone)] if clone else []),
            *(["--cpu-time"] if CLOCK[0] is time.process_time else []),
        ]
        command = [sys.executable, "-m", "benchmarks.training", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a peer ended with {self.process.wait()}")
        return json.loads(answer)

    def train(self, steps: int) -> float:
        return float(self.ask({"steps": steps}))

    def losses(self) -> list[float]:
        return list(self.ask({"steps": CHECKED, "losses": True}))


def serve(name: str, row: Row, clone: Path | None) -> None:
    """Answer the questions of a `Process` until there are none."""
    given = peer(name, row, clone)
    for line in sys.stdin:
        question, losses = json.loads(line), list[float]()
        with contextlib.redirect_stdout(sys.stderr):
            seconds = given.train(question["steps"], losses.append) if "losses" in question else given.train(question["steps"])
        print(json.dumps(losses or seconds), flush=True)


def measure(title: str, clone: Path | None, rounds: int, most: float) -> dict[str, Any]:
    """Tokens per second of each peer, and how many times as fast hornbook is, with quartiles over the rounds."""
    row = ROWS[title]
    names = [
        "hornbook",
        *(["nanoGPT", KEPT] if clone else []),
        "transformers Trainer",
        USUAL,
        COMPILED,
        *([WEIGHTS] if row.dropout else []),
        PRODUCTS,
    ]
    peers = {name: Process(name, title, clone) for name in names}
    try:
        agreed = None
        if clone is not None and row.dropout == 0:
            agreed = losses_agree(peers["hornbook"], peers["nanoGPT"], most)
        seconds: dict[str, list[float]] = {name: [] for name in peers}
        for each in peers.values():
            each.train(2)  # warms up
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                seconds[name].append(peers[name].train(row.steps))
    finally:
        for each in peers.values():
            each.process.kill()
    tokens = row.steps * row.block * row.batch
    return {
        "clock": CLOCK[0].__name__, "steps_per_block": row.steps, "rounds": rounds, "first_losses": agreed,
        "tokens_per_second": {name: quartiles([tokens / each for each in found]) for name, found in seconds.items()},
        "times_as_fast": {
            name: quartiles([b / a for a, b in zip(seconds["hornbook"], found, strict=True)]) for name, found in seconds.items()
        },
    }  # fmt: skip


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(x) for x in np.quantile(values, (0.25, 0.5, 0.75))]


class Peer(Protocol):
    model: nn.Module

    def train(self, steps: int) -> float: ...


def peak_bytes(peer: Peer) -> int:
    """The most that one step holds above weights, gradients and moments, which the step before has made."""
    peer.train(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        peer.train(1)
    live = peak = 0
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak - gradient_bytes(peer.model)  # made within the step


def gradient_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * (parameter.grad_dtype or parameter.dtype).itemsize for parameter in model.parameters())


def memory(row: Row, clone: Path | None) -> dict[str, Any]:
    """Peak bytes of a step; the allocator's record is the same at every run."""
    theirs = transformers.GPT2LMHeadModel(row.config())
    peers: dict[str, Callable[[], Any]] = {"transformers, plain loop": lambda: transformers_plain(row, theirs)}
    if clone is not None:
        peers = {"nanoGPT": lambda: nanogpt(row, clone, theirs), **peers}
    for kind in KINDS:

        def ours(kind: str = kind) -> Hornbook:
            peer = Hornbook(row, theirs)
            recompute(peer.model, kind)
            return peer

        peers["hornbook" if kind == "none" else f"hornbook, recompute {kind}"] = ours
    found: dict[str, int] = {}
    for name, make in peers.items():
        found[name] = peak_bytes(make())
        share = f"   {found[name] / found['nanoGPT']:.2f} of nanoGPT's" if "nanoGPT" in found else ""
        print(f"  {name:32} {found[name] / 1e6:8.1f} MB{share}", flush=True)
    return {"bytes": found}


def machine() -> dict[str, Any]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform(),
        "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS), help="some of them, with commas; nothing: none")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--losses", type=float, default=1e-4)
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor: where others use it, too")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    given = parser.parse_args()
    CLOCK[0] = time.process_time if given.cpu_time else time.perf_counter
    transformers.logging.set_verbosity_error()
    if given.peer:
        return serve(given.peer, ROWS[given.rows], given.nanogpt)
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    for title in filter(None, given.rows.split(",")):
        print(f"\n{title}: {ROWS[title]}")
        found = measure(title, given.nanogpt, given.rounds, given.losses)
        record.setdefault("rows", {})[title] = {**found, "machine": machine()}
        for name, (low, median, high) in found["times_as_fast"].items():
            speed = found["tokens_per_second"][name][1]
            print(f"  {name:26} {speed:9.0f} tokens/s   hornbook is {median:.2f} ({low:.2f} to {high:.2f}) times as fast")
    if given.memory:
        print("\ngpt2-124m: peak of one step above weights, gradients and moments")
        record["memory"] = {**memory(ROWS["gpt2-124m"], given.nanogpt), "machine": machine()}
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {given.out}")


if __name__ == "__main__":
    main()
