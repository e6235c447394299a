"""Models, batches and data that are small enough to be checked by hand, all drawn from seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hornbook.batch import IGNORE, Batch
from hornbook.data.batches import StreamRows
from hornbook.families import build
from hornbook.model import TransformerModel, initialize

VOCAB = 61
LLAMA = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
TIED = {**LLAMA, "tie_word_embeddings": True}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 8}
GPT2 = {
    "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4,
    "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0,
}  # fmt: skip
FAMILIES = {"llama": LLAMA, "llama-tied": TIED, "qwen3": QWEN3, "gpt2": GPT2}


def tiny_model(config: dict[str, Any] = LLAMA, seed: int = 0, dtype: torch.dtype = torch.float64) -> TransformerModel:
    """A model whose every parameter, norms and biases too, is off its usual start, so that each of them matters."""
    model = initialize(build(config), seed, std=0.2).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.05)
    return model


def random_batch(rows: int, length: int, seed: int, share: float = 1.0) -> Batch:
    """Random ids; about `share` of the targets count. `text_bytes` is some number that a test can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
    asked = torch.rand((rows, length), generator=generator) < share
    return Batch(ids[:, :-1], ids[:, 1:].masked_fill(~asked, IGNORE), text_bytes=100 + seed)


def tiny_stream(context: int = 8, seed: int = 3) -> StreamRows:
    """A stream of random ids with as many bytes of text per id as its number says."""
    ids = np.random.default_rng(seed).integers(0, VOCAB, 400).astype("<u2")
    return StreamRows(ids, context, np.arange(VOCAB, dtype=np.int64), seed)


class Given:
    """The batches that a test wrote down, as a source that can be resumed."""

    def __init__(self, batches: list[Batch]):
        self.batches, self.place = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.place += 1
        return self.batches[self.place - 1]

    def state(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def weights(model: TransformerModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two models' weights or gradients."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
