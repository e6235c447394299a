"""A step that training left out is taken again, to the bit, and its odd row is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.batch import Batch, Loss
from hornbook.cli.replay import shown
from hornbook.errors import UserError
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.stages.replay import replay
from hornbook.train.ctc import ctc
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal, causal_lm, masked_lm
from tests.reference.tiny import GPT2, VOCAB, Given, random_batch, tiny_model

LAST = 300
LEARNED, ODD = random_batch(3, 12, 1), random_batch(3, 12, 99)
WITH_DROPOUT = {**GPT2, "resid_pdrop": 0.1}
BERT = {
    "model_type": "bert", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
SPEECH = {
    "model_type": "speech_ctc", "vocab_size": 9, "num_mel_bins": 6, "d_model": 16, "encoder_layers": 1, "dropout": 0.1,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "activation_function": "gelu", "max_source_positions": 20,
}  # fmt: skip


def recordings(seed: int) -> Batch:
    """Three of up to 24 frames, of 4 letters each."""
    draw = torch.Generator().manual_seed(seed)
    padding_bs = torch.arange(24) < torch.tensor([[24], [22], [18]])
    return Batch(torch.randn((3, 6, 24), generator=draw), torch.randint(1, 9, (3, 4), generator=draw), padding_bs=padding_bs)


def odd_run(
    folder: Path, objective: Any = causal_lm, config: Any = WITH_DROPOUT, learned: Batch = LEARNED, odd: Batch = ODD,
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """A batch that is known by heart, again and again, and then one whose second row is strange; the row of that step."""
    mixed = replace(learned, tokens_bt=learned.tokens_bt.clone(), targets_bt=learned.targets_bt.clone())
    mixed.tokens_bt[1], mixed.targets_bt[1] = odd.tokens_bt[1], odd.targets_bt[1]
    model, rows = tiny_model(config, dtype=torch.float32), list[dict[str, Any]]()

    def describe(batch: Batch) -> list[str]:
        return [str(row) for row in batch.tokens_bt.tolist()]

    torch.manual_seed(0)  # dropout's
    run = Run(steps=LAST + 1, folder=folder, save_seconds=1e9, log=rows.append, describe=describe, **settings)
    source = Given([*[learned] * (LAST - 1), mixed, learned])
    state = fit(model, source, objective, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
    assert state.skipped == 1
    return next(row for row in rows if "left_out" in row)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"precision": "bf16"}, {"objective": causal(0.01)}, {"objective": causal(0.01), "config": BERT},
        {"objective": masked_lm, "config": BERT, "learned": random_batch(3, 12, 1, share=0.4), "sigmas": 12},
        {"objective": ctc, "config": SPEECH, "learned": recordings(1), "odd": recordings(2), "sigmas": 50},
    ],
    ids=["causal", "bf16", "z-loss", "masked z-loss", "masked", "ctc"],
)  # fmt: skip
def test_the_step_has_the_same_bits_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Dropout is in it: the random numbers are those of the step."""
    row, odd = odd_run(tmp_path, **settings), settings.get("odd", ODD)
    assert row["step"] == LAST and "sigma above the usual" in row["left_out"]
    record = replay(tmp_path / "incidents" / f"step-{LAST:08d}", torch.device("cpu"))
    assert record["again"] == {"loss": record["loss"], "gradient_norm": record["gradient_norm"]}
    assert (record["rows"][0]["row"], record["rows"][0]["text"]) == (1, str(odd.tokens_bt[1].tolist()))
    assert record["rows"][0]["loss"] > 3 * record["rows"][1]["loss"]
    screen = shown(record)
    assert f"step {LAST}" in screen and record["odd"] in screen and "batch 0 row 1" in screen


def test_what_cannot_be_taken_again_is_said(tmp_path: Path) -> None:
    def unknown(model: TransformerModel, batch: Batch) -> Loss:
        return causal_lm(model, batch)

    odd_run(tmp_path, unknown)
    with pytest.raises(UserError, match="unknown"):
        replay(tmp_path / "incidents" / f"step-{LAST:08d}", torch.device("cpu"))
    with pytest.raises(UserError, match="no incident"):
        replay(tmp_path, torch.device("cpu"))
