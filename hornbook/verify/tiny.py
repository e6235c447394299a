"""What the invariants are proved on: a model, a tokenizer, batches and a whole training run, small and drawn from seeds.

Run as `python -m hornbook.verify.tiny FOLDER DEVICE THREADS`, it is the training run that a check kills, and under torchrun one
of the two processes of another.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch

from hornbook.batch import IGNORE, Batch
from hornbook.data.batches import Batches, StreamRows
from hornbook.data.town import Town
from hornbook.families import build
from hornbook.model import TransformerModel, initialize
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team, join
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm

CPU = torch.device("cpu")
VOCAB, CONTEXT, STEPS, NEVER = 320, 32, 30, 1e9


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train((document.text for document in Town(0).documents(30_000)), vocab=VOCAB)


def tiny_model(device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> TransformerModel:
    tokenizer = tiny_tokenizer()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": 32, "hidden_act": "silu",
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT, "tie_word_embeddings": True, "bos_token_id": tokenizer.special("<|bos|>"),
        "eos_token_id": tokenizer.end_ids[0], "pad_token_id": tokenizer.end_ids[0],
    }  # fmt: skip
    return initialize(build(config), seed).to(device, dtype).eval()


def precise(device: torch.device) -> torch.device:
    """Where to compute in float64: there, or on the processor where the device has none."""
    return torch.device("cpu") if device.type == "mps" else device


def random_batch(device: torch.device, rows: int, length: int, seed: int, share: float = 1.0) -> Batch:
    """Random ids; about `share` of the targets count."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
    asked = torch.rand((rows, length), generator=generator) < share
    return Batch(ids[:, :-1].to(device), ids[:, 1:].masked_fill(~asked, IGNORE).to(device))


def train(
    folder: Path, device: torch.device, steps: int = STEPS, save_seconds: float = NEVER, dtype: torch.dtype = torch.float32,
    team: Team | None = None,
) -> TransformerModel:  # fmt: skip
    """The first `steps` of one and the same run of `STEPS`, begun or continued in `folder`."""
    torch.manual_seed(0)
    team = team or Team(device=device)
    model, ids = tiny_model(device, dtype), np.random.default_rng(0).integers(0, VOCAB, 2000)
    batches = Batches(StreamRows(ids, CONTEXT, np.ones(VOCAB, np.int64)), 4, 0, device, team.part, team.parts)
    team.spread(model)
    run = Run(steps=steps, accumulate=2, folder=folder, save_seconds=save_seconds, name="verify", team=team)
    fit(model, batches, causal_lm, build_optimizer(model, "muon", 0.01), warmup_decay(STEPS, 5), run)
    return model


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    if "WORLD_SIZE" in os.environ:
        train(Path(sys.argv[1]), CPU, dtype=torch.float64, team=join(Parallel(data=2, zero=2), CPU))
    else:
        train(Path(sys.argv[1]), torch.device(sys.argv[2]), save_seconds=0)
