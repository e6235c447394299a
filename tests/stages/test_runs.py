"""A recipe as a whole: recipes/gpt2-124m.toml, by its published numbers, and made small on a folder laid out like the hub's."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hornbook
from hornbook import families
from hornbook.batch import Batch
from hornbook.config import from_toml, to_toml
from hornbook.data.mixture import BLOCK, quotas
from hornbook.data.shards import read_ids
from hornbook.errors import Interrupted, UserError
from hornbook.files import read_lines
from hornbook.generation.sampling import Sampling
from hornbook.model import shapes_only
from hornbook.optim.schedule import warmup_decay
from hornbook.stages import learn, runs, tokens
from hornbook.stages.corpus import each_document, make_corpus, saved_documents
from hornbook.stages.learn import METRICS, model_config
from hornbook.stages.runs import pretrain_run
from hornbook.stages.settings import SMALLEST_SHARE, Recipe, SpeechRecipe, learned
from hornbook.stages.tokens import make_shards, ready_tokenizer
from hornbook.stages.voice import Silent
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.objective import causal_lm
from tests.stages.test_learn import BERT, LLAMA

GPT2 = from_toml(Recipe, Path(__file__).resolve().parents[2] / "recipes" / "gpt2-124m.toml")


def prose(count: int, words: int = 60, letters: str = "abcdefghij") -> list[str]:
    draw = random.Random(count)
    known = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(900)]
    return [" ".join(draw.choices(known, k=words)) + "." for _ in range(count)]


def written(folder: Path, texts: list[str]) -> Path:
    """Rows with the columns of FineWeb-Edu."""
    folder.mkdir(parents=True)
    rows = [
        {"text": text, "id": f"<urn:{n}>", "url": "https://a.b", "score": 2.9, "token_count": 9} for n, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "000_00000.parquet")
    return folder


@pytest.fixture
def gpt2(data_folder: Path) -> Tokenizer:
    return Tokenizer.load(data_folder / "tokenizers" / "gpt2")


def test_gpt2_has_its_published_numbers(gpt2: Tokenizer) -> None:
    """124,439,808 parameters with 50257 rows; 2^19 tokens a step, which eight ranks share evenly; 375M of them for the warm-up.

    Its looks read a million tokens, in documents of a thousand, and at half overlapping windows take under a hundredth of it all.
    """
    config = model_config(GPT2, gpt2)
    for rows, parameters in ((50257, 124_439_808), (50304, 124_475_904)):
        with shapes_only():
            model = families.build({**config, "vocab_size": rows}, "[model]")
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert config["vocab_size"] == 50304 and (config["bos_token_id"], config["eos_token_id"]) == (50256, 50256)
    assert GPT2.rows * GPT2.accumulate * GPT2.context == 2**19 and GPT2.rows % 8 == 0
    assert GPT2.steps == 10**10 // 2**19 and GPT2.warmup == 375_000_000 // 2**19
    look = 1000 * GPT2.held_out_documents
    assert look >= 10**6 and 4 * look < GPT2.held_out_bytes and GPT2.looks == 40 and 2 * GPT2.looks * look / 3 < 10**10 / 100
    factor = warmup_decay(GPT2.steps, GPT2.warmup, GPT2.decay)
    assert factor(GPT2.warmup) == 1 and factor(GPT2.steps - 1) < 1e-7


def test_gpt2s_recipe_runs_on_a_folder(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end, and no held-out document is in the shard, which holds every other one behind its mark."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    texts = prose(200, 40)
    written(tmp_path / "fineweb-edu" / "sample" / "10BT", texts)
    small = {**GPT2.model, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    tiny = replace(
        GPT2, data="hf:./fineweb-edu/sample/10BT", tokenizer=str(data_folder / "tokenizers" / "gpt2"), model=small, context=32,
        rows=8, accumulate=2, steps=2, warmup=1, out=str(tmp_path / "run"), compile=False,
    )  # fmt: skip
    made = pretrain_run(tiny, Silent(), "")
    model, tokenizer = hornbook.load(made)
    assert model.config["vocab_size"] == 50304 and tokenizer.vocab_size == 50257
    rows = read_lines(tmp_path / "run" / METRICS)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert all(row["held_out_bits_per_byte"] > 0 for row in rows if "held_out_loss" in row)
    assert hornbook.generate(model, tokenizer, ["The"], Sampling(max_tokens=3))
    held_out = {document.text for document in saved_documents(tmp_path / "run" / "corpus", "held_out")}
    ids = read_ids(tmp_path / "run" / "shards" / "train.bin", 50257)
    assert ids[0] == 50256 and ids[-1] != 50256
    learned = [tokenizer.decode(part[1:]) for part in np.split(ids.astype(int), np.flatnonzero(ids == 50256))[1:]]
    assert held_out and held_out.isdisjoint(learned) and held_out | set(learned) == set(texts) and len(learned) == len(set(learned))


def test_a_tokenizer_that_is_not_there_is_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no tokenizer here"):
        pretrain_run(replace(GPT2, tokenizer=str(tmp_path / "empty"), out=str(tmp_path / "run"), data="town"), Silent(), "")
    assert not (tmp_path / "run" / "corpus").exists()


def test_a_runs_tokenizer_is_taken_as_it_is(tmp_path: Path) -> None:
    learned = Tokenizer.train(prose(50), vocab=300)
    learned.save(tmp_path / "first" / "tokenizer")
    for _ in range(2):  # the second is kept
        ready_tokenizer(str(tmp_path / "first"), tmp_path / "second", Silent())
    assert Tokenizer.load(tmp_path / "second").fingerprint == learned.fingerprint


def test_texts_larger_than_memory_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus and its shards are made in a small part of the memory that their text would take."""
    monkeypatch.setattr(tokens, "TOGETHER", 8)
    data, tokenizer, texts = tmp_path / "data.jsonl", Tokenizer.train(prose(9), vocab=280), prose(700, 500)
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer.encode_batch(texts[:60])  # what is compiled once is no text
    del texts
    tracemalloc.start()
    make_corpus(str(data), "en", 0, 10**9, 0, tmp_path / "corpus", Silent())
    make_shards(tmp_path / "corpus", tokenizer, tmp_path / "shards", Silent())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(document.size for document in each_document(tmp_path / "corpus", "train"))
    assert size > 2e6 and peak < size / 2


def mixed(folder: Path, out: str, **changes: Any) -> Recipe:
    """Words of two alphabets, by weights of 3 and 1; some rows of the smaller source come often."""
    for name, letters, count in (("low", "abcdef", 120), ("high", "uvwxyz", 25)):
        text = prose(count, 30, letters)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in text), encoding="utf-8")
    given = Recipe(
        out=str(folder / out), model=LLAMA, mixture={str(folder / "low.jsonl"): 3, str(folder / "high.jsonl"): 1}, vocab=300,
        corpus_bytes=10**6, context=16, rows=8, accumulate=2, steps=64, warmup=1, monitor=0,
    )  # fmt: skip
    return replace(given, **changes)


def test_a_mixture_learns_from_each_source_by_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows by quota, one vocabulary for all, no held-out text in a shard, and each source's own figure."""
    seen: list[Batch] = []
    monkeypatch.setattr(learn, "causal_lm", lambda model, batch: (seen.append(batch), causal_lm(model, batch))[1])
    recipe = mixed(tmp_path, "run")
    pretrain_run(recipe, Silent(), "")
    tokenizer = Tokenizer.load(tmp_path / "run" / "tokenizer")
    row = [tokenizer.decode(ids) for batch in seen for ids in batch.tokens_bt.tolist()]
    high = [bool(set("uvwxyz") & set(text.replace("<|bos|>", "").replace("<|end|>", ""))) for text in row]
    assert len(row) == 1024 and sum(high) == 256
    pieces = [set(tokenizer.token_bytes(token).strip()) for token in range(tokenizer.vocab_size)]
    assert all(any(len(piece) > 1 and piece <= set(letters) for piece in pieces) for letters in (b"abcdef", b"uvwxyz"))
    for number in ("0", "1"):
        held = {one.text for one in saved_documents(tmp_path / "run" / "corpus" / number, "held_out")}
        ids = read_ids(tmp_path / "run" / "shards" / number / "train.bin", tokenizer.vocab_size).astype(int)
        texts = {tokenizer.decode(part[1:-1]) for part in np.split(ids, np.flatnonzero(ids == tokenizer.special("<|bos|>")))[1:]}
        assert held and held.isdisjoint(texts)
    last = [row for row in read_lines(tmp_path / "run" / METRICS) if "held_out_loss" in row][-1]
    parts = [last[f"held_out_bits_per_byte {name}"] for name in recipe.mixture]
    assert min(parts) < last["held_out_bits_per_byte"] < max(parts)


def stop(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, after: int = 3) -> list[int]:
    """Pretrain, stopped after so many batches; a list that grows by each batch that is learned."""
    seen = list[int]()

    def stopping(model: Any, batch: Batch) -> Any:
        seen.append(1)
        if len(seen) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return causal_lm(model, batch)

    monkeypatch.setattr(learn, "causal_lm", stopping)
    with pytest.raises(Interrupted):
        pretrain_run(recipe, Silent(), "")
    return seen


def test_a_mixture_that_is_stopped_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrain_run(mixed(tmp_path, "whole", steps=12, ramp=6), Silent(), "")
    seen = stop(mixed(tmp_path, "stopped", steps=12, ramp=6), monkeypatch, after=11)
    continued = pretrain_run(mixed(tmp_path, "stopped", steps=12, ramp=6), Silent(), "")
    assert 11 < len(seen) < 60
    assert (continued / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def alone(folder: Path, out: str = "run", **changes: Any) -> Recipe:
    given = mixed(folder, out, steps=12)
    return replace(given, mixture={}, data=next(iter(given.mixture)), **changes)


@pytest.mark.parametrize("finished", [False, True])
def test_a_changed_setting_is_refused_by_its_key_before_any_work(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its key of the recipe, and nothing in the folder is another for it."""
    seen = list[int]()
    if finished:
        pretrain_run(alone(tmp_path), Silent(), "")
        shutil.rmtree(tmp_path / "run" / "checkpoints")  # the model's own record is asked
    else:
        seen = stop(alone(tmp_path), monkeypatch)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"learning_rate": 0.02}, "learning_rate was 0.01 and is now 0.02"),
        ({"steps": 13, "seed": 0}, "steps was 12 and is now 13"),
        ({"decay_steps": 3}, "decay_steps was None and is now 3"),
        ({"corpus_bytes": 90_000}, "corpus_bytes was 1000000 and is now 90000"),
        ({"model": {**LLAMA, "hidden_size": 16}}, "model.hidden_size was 32 and is now 16"),
    ]
    for change, why in changes:
        with pytest.raises(UserError, match="belongs to another run") as error:
            pretrain_run(alone(tmp_path, **change), Silent(), "")
        assert error.value.why == why
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before and len(seen) in (0, 4)


@pytest.mark.parametrize(("keep_best", "stay"), [(False, {9, 18, 19, 20}), (True, {5, 9, 18, 19, 20})])
def test_a_recipe_says_which_states_stay(keep_best: bool, stay: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ninth, the newest two and the best, which is by a figure that falls and rises the first of four looks."""
    losses = iter([1.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(learn, "held_out", lambda *given: lambda step, model: {"held_out_loss": next(losses)})
    pretrain_run(alone(tmp_path, steps=20, keep_every=9, keep_best=keep_best), Silent(), "")
    assert {int(path.name.removeprefix("step-")) for path in (tmp_path / "run/checkpoints/pretrain").glob("step-*")} == stay


def test_the_best_state_is_that_of_the_lowest_loss_on_held_out_text(tmp_path: Path) -> None:
    """Of the real figures, of both objectives, with a rate that rises until nothing is learned any more."""
    kinds: dict[str, dict[str, Any]] = {"causal": {}, "masked": {"model": BERT, "objective": "masked"}}
    for out, changes in kinds.items():
        pretrain_run(
            alone(tmp_path, out, steps=20, embedding_rate=3.0, warmup=20, sigmas=0, keep_best=True, **changes), Silent(), ""
        )
        held = {row["step"]: row["held_out_loss"] for row in read_lines(tmp_path / out / METRICS) if "held_out_loss" in row}
        best = min(held, key=lambda step: held[step])
        assert len(held) == 4 and best < 20 and (tmp_path / out / f"checkpoints/pretrain/step-{best:08d}").is_dir()
    with pytest.raises(ValueError, match="keep_best must be false"):
        SpeechRecipe(out="", model={}, keep_best=True)


def test_what_moves_no_figure_may_change_while_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stop(alone(tmp_path, device="auto", optimizer="adamw"), monkeypatch)
    other: dict[str, Any] = {"device": "cpu", "update": "plain", "recompute": "blocks", "monitor": 3, "workers": 1}
    pretrain_run(alone(tmp_path, optimizer="adamw", learning_rate=1e-2, **other), Silent(), "")
    assert len(seen) == 2 * 12  # of two batches each: no step was taken twice
    assert 'update = "plain"' in (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8")


def test_a_setting_that_a_run_did_not_have_yet_counts_as_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a later version goes on with it."""
    with monkeypatch.context() as older:
        for place in (learn, runs):
            older.setattr(place, "learned", lambda recipe: {k: v for k, v in learned(recipe).items() if k != "z_loss"})
        seen = stop(alone(tmp_path), monkeypatch)
    with pytest.raises(UserError, match="z_loss was 0.0 and is now 0.1"):
        pretrain_run(alone(tmp_path, z_loss=0.1), Silent(), "")
    for _ in range(2):  # the second is kept
        pretrain_run(alone(tmp_path), Silent(), "")
        assert len(seen) == 2 * 12


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ({"town": 0}, "mixture must give every source a weight above 0: town = 0"),
        ({"town": 1, "python": float("nan")}, "weight above 0: python"),
        ({"town": "much"}, "weight above 0: town = 'much'"),
        ({"town": 1, "python": 1 / (BLOCK + 1)}, "at least 0.0010 of all weights: python"),
    ],
)
def test_bad_weights_are_refused(mixture: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        mixed(tmp_path, "run", mixture=mixture)
    with pytest.raises(ValueError, match="data must be left out"):
        mixed(tmp_path, "run", data="python")
    assert quotas([1, SMALLEST_SHARE / (1 - SMALLEST_SHARE)], BLOCK).all()


def test_a_folder_of_one_source_is_not_taken_for_a_mixture(tmp_path: Path) -> None:
    given = mixed(tmp_path, "run", steps=2)
    pretrain_run(replace(given, mixture={}, data=next(iter(given.mixture))), Silent(), "")
    with pytest.raises(UserError, match="belongs to another run"):
        pretrain_run(given, Silent(), "")


def test_a_mixture_is_a_table_of_a_recipe(tmp_path: Path) -> None:
    given = mixed(tmp_path, "run")
    (tmp_path / "recipe.toml").write_text(to_toml(given), encoding="utf-8")
    assert from_toml(Recipe, tmp_path / "recipe.toml") == given and given.reads.endswith("high.jsonl")
    (tmp_path / "recipe.toml").write_text('out = "x"\n[mixture]\ntown = 0.7\nshakespeare = -1\n[model]\n', encoding="utf-8")
    with pytest.raises(UserError, match="shakespeare = -1") as caught:
        from_toml(Recipe, tmp_path / "recipe.toml")
    assert str(caught.value.where).endswith("recipe.toml:2")
