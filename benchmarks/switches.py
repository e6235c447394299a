"""Every switch of a recipe against the default: tokens per second and peak memory, on this device.

    python -m benchmarks.switches --write       (and the tables of docs/*/training.md)

One GPT-2 shape with tied embeddings, trained by `fit` with AdamW, the reading of data included. The peers take turns a few steps at
a time, the order turns too; a ratio is taken within a round, against the row that it names. Peak memory is that of one step above
weights, gradients and moments. Rows of no switch are there to be compared with, or put back what hornbook does by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.pages import DOCS, LANGUAGES, table, write
from benchmarks.training import CLOCK, gradient_bytes, machine, peak_bytes, quartiles
from hornbook.data.batches import Batches, Rows, StreamRows
from hornbook.data.packing import pack_stream
from hornbook.errors import UserError
from hornbook.families import build
from hornbook.model import initialize
from hornbook.optim.build import build_optimizer
from hornbook.optim.masters import Masters
from hornbook.stages.settings import Learning
from hornbook.stages.train import switch
from hornbook.train import cross_entropy, loop
from hornbook.train.objective import causal_lm
from hornbook.train.precision import allow_tf32, choose_precision


@dataclass(frozen=True)
class Shape:
    layers: int = 4
    dim: int = 256
    heads: int = 4
    vocab: int = 4096
    context: int = 256
    rows: int = 8


@dataclass(frozen=True)
class Peer:
    """Settings of a recipe, the row that they are compared with, the dropout of the model, and what is put back."""

    settings: dict[str, Any] = field(default_factory=dict)
    against: str = "default"
    dropout: float = 0.0
    packed: bool = False
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


PEERS = {
    "default": Peer(),
    'recompute = "blocks"': Peer({"recompute": "blocks"}),
    'recompute = "selective"': Peer({"recompute": "selective"}),
    "compile = true": Peer({"compile": True}),
    'weights = "bf16"': Peer({"weights": "bf16"}),
    'precision = "bf16"': Peer({"precision": "bf16"}),
    'precision = "fp8"': Peer({"precision": "fp8"}),
    "tf32 = true": Peer({"tf32": True, "precision": "fp32"}, 'precision = "fp32"'),
    'precision = "fp32"': Peer({"precision": "fp32"}),
    'kernels = "triton"': Peer({"kernels": "triton"}),
    'update = "foreach"': Peer({"update": "foreach"}),
    'update = "plain"': Peer({"update": "plain"}),
    'attention = "flex"': Peer({"attention": "flex"}),
    "packed documents": Peer(packed=True),
    'packed documents, attention = "flex"': Peer({"attention": "flex"}, "packed documents", packed=True),
    "dropout 0.2": Peer(dropout=0.2),
    'dropout 0.2, attention_dropout = "keys"': Peer({"attention_dropout": "keys"}, "dropout 0.2", 0.2),
    "all logits at once": Peer(within=lambda: patch.object(cross_entropy, "CHUNK", sys.maxsize)),
    "two gradients of the tied embedding": Peer(within=lambda: patch.object(loop, "one_gradient", nullcontext)),
}
CHINESE = {
    "default": "默认", "packed documents": "打包的文档", "dropout 0.2": "dropout 0.2", "all logits at once": "一次算出全部 logits",
    "two gradients of the tied embedding": "绑定的嵌入有两份梯度",
}  # fmt: skip
REFUSED = {"en": "refused: ", "zh": "拒绝："}
HEADERS = {
    "en": ("switch", "against", "times as fast (quartiles)", "peak, MB"),
    "zh": ("开关", "对比", "速度倍数（四分位数）", "内存峰值，MB"),
}


class Trained:
    """A model with its switches, and the loop of every run. A `UserError` where this device lacks one."""

    def __init__(self, shape: Shape, peer: Peer, device: torch.device):
        recipe, p = Learning(optimizer="adamw", **peer.settings), peer.dropout
        self.peer, self.recipe, self.device, self.precision = peer, recipe, device, choose_precision(recipe.precision, device)
        allow_tf32(recipe.tf32, device)
        config = {
            "model_type": "gpt2", "vocab_size": shape.vocab, "n_positions": shape.context, "n_embd": shape.dim,
            "n_layer": shape.layers, "n_head": shape.heads, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
            "resid_pdrop": p, "attn_pdrop": p, "embd_pdrop": p,
        }  # fmt: skip
        self.model = initialize(build(config), 0).to(device)
        switch(self.model, recipe, lambda line: None)
        optimizer = build_optimizer(self.model, "adamw", 6e-4, update=recipe.update)
        self.optimizer = Masters(self.model, optimizer) if recipe.weights == "bf16" else optimizer
        self.source = Batches(rows(shape, peer.packed), shape.rows, 0, device)

    def train(self, steps: int) -> float:
        """Seconds of so many steps."""
        allow_tf32(self.recipe.tf32, self.device)
        run = loop.Run(steps=steps, log_every=steps, precision=self.precision)
        start = CLOCK[0]()
        with self.peer.within():
            loop.fit(self.model, self.source, causal_lm, self.optimizer, lambda step: 1.0, run)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return CLOCK[0]() - start


def rows(shape: Shape, packed: bool) -> Rows:
    """Random ids; packed ones are documents of an eighth of a row on average, which begin with id 0."""
    draw = np.random.default_rng(0)
    ids = draw.integers(1, shape.vocab, size=64 * shape.rows * shape.context + 1).astype(np.uint16)
    lengths = np.ones(shape.vocab, np.int64)
    if not packed:
        return StreamRows(ids, shape.context, lengths)
    ids[draw.random(len(ids)) < 8 / shape.context] = 0
    ids[0] = 0
    return pack_stream(ids, 0, shape.context, 0, lengths)


def peak(peer: Trained) -> int:
    """Bytes of one step at its fullest, above weights, gradients and moments."""
    if peer.device.type != "cuda":
        return peak_bytes(peer)
    peer.train(1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    peer.train(1)
    return torch.cuda.max_memory_allocated() - before - gradient_bytes(peer.model)


def measure(shape: Shape, rounds: int, steps: int, device: torch.device) -> dict[str, Any]:
    """A row per peer: its tokens per second, its ratio and its peak, or why it is refused."""
    peers, found = dict[str, Trained](), dict[str, dict[str, Any]]()
    for name, peer in PEERS.items():
        found[name] = {"against": peer.against}
        try:
            peers[name] = Trained(shape, peer, device)
        except UserError as error:
            found[name]["refused"] = ". ".join(filter(None, (error.what, error.why)))
    for name, peer in peers.items():
        found[name]["peak_bytes"] = peak(peer)  # which warms up, too
        print(f"  {name:42} {found[name]['peak_bytes'] / 1e6:8.1f} MB", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    names = list(peers)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds[name].append(peers[name].train(steps))
    for name, own in seconds.items():
        other = seconds[found[name]["against"]]
        tokens = steps * shape.rows * shape.context
        found[name]["tokens_per_second"] = quartiles([tokens / each for each in own])
        found[name]["times_as_fast"] = quartiles([b / a for a, b in zip(own, other, strict=True)])
    return found


def cells(name: str, row: dict[str, Any], language: str) -> list[str]:
    """A row of the table, in words of that language where it is no setting."""
    if language == "zh":
        for english, chinese in CHINESE.items():
            name, row = name.replace(english, chinese), {**row, "against": row["against"].replace(english, chinese)}
    if "refused" in row:
        return [name, row["against"], f"{REFUSED[language]}{row['refused']}", ""]
    low, middle, high = row["times_as_fast"]
    return [name, row["against"], f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{row['peak_bytes'] / 1e6:.1f}"]


def page(record: dict[str, Any], language: str) -> str:
    where = f"{record['device']}, {record['machine']['cpu']}, torch {record['machine']['torch']}"
    return f"{where}\n\n" + table(HEADERS[language], [cells(name, row, language) for name, row in record["rows"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of a peer in a round")
    parser.add_argument("--tiny", action="store_true", help="a model of no interest: does it run?")
    parser.add_argument("--write", action="store_true", help="put the table into the guides")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "switches.json")
    given = parser.parse_args()
    shape = Shape(2, 32, 2, 128, 32, 2) if given.tiny else Shape()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = measure(shape, given.rounds, given.steps, device)
    record = {"device": str(device), "shape": vars(shape), "rounds": given.rounds, "rows": found, "machine": machine()}
    print(page(record, "en"))
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if given.write:
        for language in LANGUAGES:
            write(DOCS / language / "training.md", "switches", page(record, language))


if __name__ == "__main__":
    main()
