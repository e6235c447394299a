"""A long run of tiny steps ends with the memory, descriptors and threads that it soon had (R15)."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.data.batches import Batches
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.train.loop import Run, fit, ignore
from hornbook.train.objective import causal_lm
from tests.reference.tiny import LLAMA, tiny_model, tiny_stream

TINY = {
    **LLAMA,
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def measured() -> dict[str, int]:
    """Bytes in memory, and how many objects, tensors among them, descriptors and threads there are."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    objects = gc.get_objects()
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"), "objects": len(objects),
        "tensors": sum(type(each) is torch.Tensor for each in objects),
        "descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
        "kernel_threads": len(os.listdir("/proc/self/task")),
    }  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what Linux shows of a process")
@pytest.mark.parametrize("steps", [600, pytest.param(100_000, marks=pytest.mark.soak)])
def test_a_long_run_holds_no_more_than_a_short_one(steps: int, tmp_path: Path) -> None:
    """Rows, looks, states on disk and workers all go on; what there is after half of the steps, or 5000, must be enough."""
    seen, early = dict[int, dict[str, int]](), min(steps // 2, 5000)

    def look(step: int, model: TransformerModel) -> dict[str, Any]:
        if step in (early, steps - early // 10):
            seen[step] = measured()
        return {"held_out": 1.0}

    model = tiny_model(TINY, dtype=torch.float32)
    run = Run(
        steps=steps, folder=tmp_path, save_every=early // 5, save_seconds=1e9, log_every=1, hook_every=early // 10, log=ignore
    )
    with Batches(tiny_stream(context=4), 2, seed=5, workers=2) as batches:
        fit(model, batches, causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run, [look])
    first, last = seen.values()
    print(f"{steps} steps:", {name: (first[name], last[name]) for name in first})
    assert last["memory"] < 1.01 * first["memory"]
    assert last["tensors"] == first["tensors"] and last["objects"] < first["objects"] + 100  # less than one in two steps
    for name in ("descriptors", "threads", "kernel_threads"):
        assert last[name] <= first[name], name
