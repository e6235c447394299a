"""One dial, minutes, and a measured speed -> the size of everything in a quickstart.

The rule, in order: how the minutes are shared; the largest model that still reads enough tokens per parameter in its share; then
steps from that model's own speed. It is settled once and stored: schedules count steps, so a resumed run is the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Shares of the time. What is left is for reading, cleaning, the tokenizer, evaluation, and for a machine that slows down.
PRETRAIN_SHARE, SFT_SHARE = 0.50, 0.15
DEPTHS = (2, 3, 4, 6, 8, 10, 12, 16, 20)
DIM_PER_LAYER, HEAD_DIM = 32, 32
TOKENS_PER_PARAMETER = 4
REFERENCE_DEPTH = 4
BYTES_PER_TOKEN = 4  # a guess, for the size of the corpus before there is a tokenizer
EPOCHS = 3  # a corpus is not read more often than this where there is more of it
VOCAB, OTHER_VOCAB = {"town": 1024}, 1536
BATCH, OTHER_BATCH = {"town": (8, 256)}, (16, 128)  # rows, and tokens per row


@dataclass(frozen=True)
class Size:
    """What the plan settles. tokens: read in pretraining; corpus_bytes: as much text as is wanted."""

    depth: int
    dim: int
    vocab: int
    context: int
    rows: int
    steps: int
    sft_steps: int
    corpus_bytes: int
    conversations: int
    tokens_per_second: float
    rule: tuple[str, ...]


def model_config(depth: int, dim: int, vocab: int, context: int) -> dict[str, Any]:
    """A published config.json in the Llama shape: width 32 per layer, heads of 32, a gated feed-forward of three widths."""
    heads = dim // HEAD_DIM
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": dim,
        "intermediate_size": 3 * dim, "num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": heads,
        "head_dim": HEAD_DIM, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": False,
        "max_position_embeddings": context, "tie_word_embeddings": True, "torch_dtype": "float32",
    }  # fmt: skip


def parameters(depth: int, vocab: int) -> int:
    """Of `model_config`'s shape: embedding, then per layer 4 dim^2 for attention and 9 dim^2 for the feed-forward."""
    dim = depth * DIM_PER_LAYER
    return vocab * dim + depth * (13 * dim * dim + 2 * dim) + dim


def settle(
    minutes: float, data: str, speed: Callable[[int, int], float], depth: int | None, vocab: int | None, steps: int | None
) -> Size:
    """The plan for `minutes`. `speed(depth, vocab)` measures tokens per second; it is asked only where the clock decides.

    With `steps` nothing is measured, so that two machines settle the same plan.
    """
    vocab = vocab or VOCAB.get(data, OTHER_VOCAB)
    seconds, (rows, context) = 60 * minutes, BATCH.get(data, OTHER_BATCH)
    rule = [f"{minutes:g} minutes: {PRETRAIN_SHARE:.0%} to pretraining, {SFT_SHARE:.0%} to fine-tuning, the rest to all else."]
    if steps is not None:
        depth = depth or REFERENCE_DEPTH
        rate, sft_steps = 0.0, max(1, steps // 3)
        rule = [f"{steps} steps were asked for, so nothing was measured."]
    else:
        if depth is None:
            reference = speed(REFERENCE_DEPTH, vocab)
            depth = _deepest(reference, seconds * PRETRAIN_SHARE, vocab)
            rule.append(
                f"{REFERENCE_DEPTH} layers read {reference:,.0f} tokens/s here. Speed falls with size, so {depth} layers is the "
                f"largest model that reads at least {TOKENS_PER_PARAMETER} tokens per parameter in its share."
            )
        rate = speed(depth, vocab)
        steps = max(1, int(rate * seconds * PRETRAIN_SHARE / (context * rows)))
        sft_steps = max(1, int(rate * seconds * SFT_SHARE / (context * rows)))
        rule.append(f"{depth} layers read {rate:,.0f} tokens/s, hence {steps} steps of {context * rows} tokens.")
    tokens = steps * context * rows
    corpus_bytes = max(200_000, tokens * BYTES_PER_TOKEN // EPOCHS)
    rule.append(f"The corpus is cut to {corpus_bytes / 1e6:.1f} MB: at most {EPOCHS} times round for {tokens:,} tokens.")
    conversations = max(500, sft_steps * rows * context // 40)
    return Size(
        depth, depth * DIM_PER_LAYER, vocab, context, rows, steps, sft_steps, corpus_bytes, conversations, rate, tuple(rule)
    )  # fmt: skip


def _deepest(reference: float, seconds: float, vocab: int) -> int:
    """The deepest model that reads enough tokens, its speed guessed from the reference by the ratio of parameters."""
    best = DEPTHS[0]
    for depth in DEPTHS:
        size = parameters(depth, vocab)
        tokens = reference * parameters(REFERENCE_DEPTH, vocab) / size * seconds
        best = depth if tokens >= TOKENS_PER_PARAMETER * size else best
    return best
