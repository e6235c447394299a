"""Two attention dropouts of one expectation, side by side: loss curves of the same model from the same weights on the same batches.

    python -m benchmarks.dropout_curves --input input.txt          (tiny Shakespeare; see --help for a smaller model)

nanoGPT's character model (6 x 384, context 256, dropout 0.2 everywhere) once with a dropout of weights, which is nanoGPT's, and
once with one of keys, which keeps the kernel's fastest path (hornbook/adapt/dropout.py); `none` is the model without any. A curve
is the loss of training, a mean over the steps since the point before, and of held-out text without dropout. Writes JSON and PNG.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from benchmarks.training import machine
from hornbook.adapt.dropout import attention_dropout
from hornbook.data.batches import Batches, StreamRows
from hornbook.families import build
from hornbook.model import TransformerModel, initialize
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm

matplotlib.use("Agg")
KINDS = ("weights", "keys", "none")


def curve(kind: str, given: argparse.Namespace, ids: np.ndarray, vocab: int) -> list[dict[str, float]]:
    """Step, training loss and held-out loss in nats per character, at each point of the curve."""
    p = 0.0 if kind == "none" else given.dropout
    config = {
        "model_type": "gpt2", "vocab_size": vocab, "n_positions": given.context, "n_embd": given.dim, "n_layer": given.layers,
        "n_head": given.heads, "layer_norm_epsilon": 1e-5, "activation_function": "gelu",
        "resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p,
    }  # fmt: skip
    model, cut, lengths = initialize(build(config), given.seed), int(0.9 * len(ids)), np.ones(vocab, np.int64)
    attention_dropout(model, "keys" if kind == "keys" else "weights")
    held_out = StreamRows(ids[cut:], given.context, lengths)
    looked_at = [held_out.take(np.arange(start, start + given.rows), 0) for start in range(0, 4 * given.rows, given.rows)]
    points: list[dict[str, Any]] = []

    @torch.no_grad()
    def look(step: int, model: TransformerModel) -> dict[str, float]:
        losses = [causal_lm(model, batch) for batch in looked_at]
        return {"held_out": float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses))}

    def log(row: dict[str, Any]) -> None:
        if "held_out" in row:
            points[-1]["held_out"] = row["held_out"]
        else:
            points.append({"step": row["step"], "loss": row["loss"]})

    every = max(1, given.steps // given.points)
    run = Run(steps=given.steps, log_every=every, hook_every=every, log=log)
    optimizer = build_optimizer(model, "adamw", given.rate, betas=(0.9, 0.99))
    torch.manual_seed(given.seed)
    rows = Batches(StreamRows(ids[:cut], given.context, lengths), given.rows, given.seed)
    fit(model, rows, causal_lm, optimizer, warmup_decay(given.steps, max(1, given.steps // 20), "cosine"), run, [look])
    return points


def picture(curves: dict[str, list[dict[str, float]]], out: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, name in zip(axes, ("loss", "held_out"), strict=True):
        for kind, points in curves.items():
            shown = [point for point in points if name in point]
            axis.plot(
                [point["step"] for point in shown],
                [point[name] for point in shown],
                label="no dropout" if kind == "none" else f"dropout of {kind}",
            )
        axis.set_title("training" if name == "loss" else "held-out text")
        axis.set_xlabel("step")
        axis.legend()
    axes[0].set_ylabel("nats per character")
    figure.tight_layout()
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=Path("../shared/data/corpora/tinyshakespeare/input.txt"))
    for name, value in {
        "layers": 6,
        "heads": 6,
        "dim": 384,
        "context": 256,
        "rows": 8,
        "steps": 500,
        "points": 25,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dropout_curves.json")
    given = parser.parse_args()
    text = given.input.read_text(encoding="utf-8")
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    ids = np.array([letters[letter] for letter in text], np.uint16)
    curves = {}
    for kind in KINDS:
        curves[kind] = curve(kind, given, ids, len(letters))
        last = curves[kind][-1]
        assert math.isfinite(last["loss"])
        print(f"dropout of {kind:8} training {last['loss']:.4f}   held out {last['held_out']:.4f}", flush=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(
        json.dumps({"settings": settings, "machine": machine(), "curves": curves}, indent=1) + "\n", encoding="utf-8"
    )
    picture(curves, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
