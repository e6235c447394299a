"""How fast batches are made of a shard in the page cache, and how many times faster than a small model consumes them.

    python benchmarks/loader.py

Tokens per second through `Batches` over `StreamRows`, everything that a training step waits for: the order, the rows, the ids as
torch wants them (eight bytes each) and the bytes of text they stand for. `shard` counts the shard's two bytes per token, `batch`
the batch's eight; a second of the processor is one of a core that does nothing else, for machines that are shared. The model is
the one of recipes/town.toml, trained on rows as large as the recipe's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hornbook.config import from_toml
from hornbook.data.batches import Batches, StreamRows
from hornbook.data.shards import read_ids, write_ids
from hornbook.ranks import processor
from hornbook.stages.measure import tokens_per_second
from hornbook.stages.settings import Recipe

VOCAB = 50257
SHAPES = ((16, 256), (16, 1024), (64, 2048))  # rows of so many tokens per batch


def measured(rows: StreamRows, batch_rows: int, workers: int, seconds: float) -> tuple[float, float]:
    """Tokens per second of the clock and of the processor, after the first batches."""
    with Batches(rows, batch_rows, 0, workers=workers) as batches:
        for _ in range(50):
            next(batches)
        start, spent, tokens = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            tokens += next(batches).targets_bt.numel()
        return tokens / (time.perf_counter() - start), tokens / (time.process_time() - spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__}
    recipe = from_toml(Recipe, Path("recipes/town.toml"))
    config = {"architectures": ["Qwen3ForCausalLM"], "vocab_size": recipe.vocab, **recipe.model}
    consumed = tokens_per_second(config, recipe.rows, recipe.context, recipe.optimizer, torch.device("cpu"))
    found["model_tokens_per_second"] = round(consumed)
    found["load"], found["loader"] = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        path, draw = Path(folder, "train.bin"), np.random.default_rng(0)
        write_ids(path, (draw.integers(0, VOCAB, 500_000, np.uint32) for _ in range(options.megabytes)), VOCAB)
        ids, lengths = read_ids(path, VOCAB), draw.integers(1, 12, VOCAB)
        for batch_rows, context in SHAPES:
            for workers in (0, 1, 2):
                speed, alone = measured(StreamRows(ids, context, lengths), batch_rows, workers, options.seconds)
                row = {
                    "rows": batch_rows, "context": context, "workers": workers, "tokens_per_second": round(speed),
                    "shard_gb_per_second": round(2 * speed / 1e9, 3), "batch_gb_per_second": round(8 * speed / 1e9, 3),
                    "tokens_per_processor_second": round(alone), "times_the_model": round(speed / consumed),
                }  # fmt: skip
                found["loader"].append(row)
                print(json.dumps(row), flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in found.items() if key != "loader"}))


if __name__ == "__main__":
    main()
