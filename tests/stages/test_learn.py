"""The training stages where a corpus or a model is unusual: they go on, or refuse before any work is done."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import hornbook
from hornbook.batch import IGNORE, Batch
from hornbook.checkpoint.state import newest_state
from hornbook.config import from_toml
from hornbook.errors import UserError
from hornbook.evals.task import bits_per_byte
from hornbook.files import read_lines
from hornbook.optim.schedule import warmup_decay
from hornbook.parallel.sizes import Parallel
from hornbook.stages import corpus, learn
from hornbook.stages.corpus import saved_documents
from hornbook.stages.learn import METRICS, check_model, model_config
from hornbook.stages.runs import pretrain_run, sft_run
from hornbook.stages.settings import Recipe, SftRecipe
from hornbook.stages.train import _check_alone
from hornbook.stages.voice import Silent
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.layers import LAYERS
from hornbook.train.objective import masked_lm
from tests.stages.test_tokens import words_of

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64,
}  # fmt: skip


class Heard(Silent):
    """A voice that remembers what it was told to say."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def recipe(data: Path, out: Path) -> Recipe:
    return Recipe(out=str(out), model=LLAMA, data=str(data), vocab=300, context=64, rows=2, steps=2, warmup=1)


def sentences(count: int, words: int) -> list[str]:
    draw = random.Random(words)
    known = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(80)]
    return [" ".join(draw.choices(known, k=words)) for _ in range(count)]


def tuned(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """Pretrain and fine-tune on the rows; what the stages said."""
    data, heard = folder / "data.jsonl", Heard()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pretrain_run(recipe(data, folder / "run"), heard, "")
    sft_run(SftRecipe(base=str(folder / "run"), steps=2, rows=2, warmup=1), heard, "")
    assert hornbook.load(folder / "run" / "tuned")
    return heard.lines


def test_a_model_that_cannot_train_on_the_recipe_is_refused(tmp_path: Path) -> None:
    good = recipe(tmp_path / "none.txt", tmp_path / "run")
    check_model(good)
    without = {key: value for key, value in LLAMA.items() if key != "max_position_embeddings"}
    for model, why in (
        (LLAMA | {"max_position_embeddings": 63}, "it reads at most 63"),
        (without, "does not say how many"),
        ({**LLAMA, "model_type": "lama"}, "llama"),
        ({**LLAMA, "num_attention_heads": 0}, "impossible"),
        (BERT, "is an encoder"),
    ):
        with pytest.raises(UserError, match=why):
            check_model(replace(good, model=model))
    check_model(replace(good, model=BERT, objective="masked"))
    with pytest.raises(UserError, match="says hidden tokens"):
        check_model(replace(good, objective="masked"))


def test_plain_text_becomes_conversations_that_fit(tmp_path: Path) -> None:
    """Whatever the model's context, most passages of a text with ordinary lines fit in pairs."""
    lines = sentences(600, 6)
    said = tuned([{"text": "\n".join(lines[start : start + 10])} for start in range(0, len(lines), 10)], tmp_path)
    counts = [line.split() for line in said if "are longer than" in line]  # "3 of 40 conversations are longer than ..."
    assert all(2 * int(count[0]) < int(count[2]) for count in counts)


def test_text_with_a_paragraph_per_line_becomes_conversations_that_fit(tmp_path: Path) -> None:
    said = tuned([{"text": "\n".join(sentences(3, 150 + number))} for number in range(40)], tmp_path)
    counts = [line.split() for line in said if "are longer than" in line]
    assert all(2 * int(count[0]) < int(count[2]) for count in counts)


def test_fine_tuning_reads_no_more_text_than_it_learns_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus without conversations may be larger than memory: its beginning becomes them, its end is replayed."""
    data, lines, parsed = tmp_path / "data.jsonl", sentences(1200, 4), 0
    data.write_text(
        "".join(json.dumps({"text": f"{a}\n{b}"}) + "\n" for a, b in zip(lines, lines[1:], strict=False)), encoding="utf-8"
    )
    pretrain_run(recipe(data, tmp_path / "run"), Silent(), "")
    read = corpus._document

    def counted(line: bytes) -> Any:
        nonlocal parsed
        parsed += 1
        return read(line)

    monkeypatch.setattr(corpus, "_document", counted)
    sft_run(SftRecipe(base=str(tmp_path / "run"), steps=2, rows=2, warmup=1), Silent(), "")
    assert 20 * 2 <= parsed < 200


def test_a_look_reads_as_many_documents_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(900, 12)), encoding="utf-8")
    asked = replace(recipe(data, tmp_path / "run"), steps=10, looks=5, held_out_bytes=1500, held_out_documents=12)
    model, tokenizer = hornbook.load(pretrain_run(asked, Silent(), ""))
    looks = [row for row in read_lines(tmp_path / "run" / METRICS) if "held_out_bits_per_byte" in row]
    texts = [one.text for one in saved_documents(tmp_path / "run" / "corpus", "held_out")]
    assert [row["step"] for row in looks] == [2, 4, 6, 8, 10] and len(texts) > 12
    found = bits_per_byte(model, tokenizer, texts[:12], asked.context).value
    assert looks[-1]["held_out_bits_per_byte"] == pytest.approx(found, abs=1e-6)
    assert abs(bits_per_byte(model, tokenizer, texts[:11], asked.context).value - found) > 1e-5


def test_looks_change_nothing(tmp_path: Path) -> None:
    """A model with dropout has equal weights however often it is looked at, and a finished run is kept."""
    data, gpt2 = tmp_path / "data.jsonl", {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    gpt2 |= {"resid_pdrop": 0.5, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(300, 12)), encoding="utf-8")
    asked = replace(recipe(data, tmp_path / "one"), model=gpt2, steps=6)
    weights = [
        (pretrain_run(replace(asked, out=str(tmp_path / out), looks=looks), Silent(), "") / "model.safetensors").read_bytes()
        for out, looks in (("one", 1), ("two", 6), ("one", 3))
    ]
    assert weights[0] == weights[1] == weights[2]
    rows = [row for row in read_lines(tmp_path / "one" / METRICS) if "held_out_loss" in row]
    assert len(rows) == 1  # kept, not made again


def test_short_documents_become_short_conversations(tmp_path: Path) -> None:
    lines = sentences(400, 3)
    assert tuned([{"text": f"{one}\n{two}"} for one, two in zip(lines[::2], lines[1::2], strict=True)], tmp_path)


def test_conversations_that_are_too_long_are_counted_and_said(tmp_path: Path) -> None:
    short, long = sentences(60, 3), sentences(60, 200)
    asked = [{"question": one, "answer": two} for one, two in zip(short[::2], short[1::2], strict=True)]
    rambling = [{"question": one, "answer": "yes"} for one in long]
    said = tuned([*rambling, *asked], tmp_path)
    assert any("conversations are longer than 64 tokens and are left out" in line for line in said)


def test_only_conversations_that_are_too_long_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no conversation fits"):
        tuned([{"question": one, "answer": "yes"} for one in sentences(60, 200)], tmp_path)


def test_pretraining_packs_whole_documents_where_it_is_told_to(tmp_path: Path) -> None:
    data, heard = tmp_path / "data.jsonl", Heard()
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(200, 12)), encoding="utf-8")
    packed = replace(recipe(data, tmp_path / "run"), packing="best-fit")
    pretrain_run(packed, heard, "")
    assert hornbook.load(tmp_path / "run" / "pretrained")
    assert any(re.fullmatch(r"[\d,]+ rows, of which [\d.]+% is padding", line) for line in heard.lines), heard.lines


@pytest.mark.parametrize(("vocab", "multiple", "rows"), [(300, 1, 300), (300, 64, 320), (320, 64, 320), (300, 7, 301)])
def test_rows_are_padded_to_a_multiple(vocab: int, multiple: int, rows: int, tmp_path: Path) -> None:
    """And the folder opens in transformers, which says the same logits."""
    data = tmp_path / "prose.txt"
    data.write_text("\n".join(sentences(400, 6)), encoding="utf-8")
    made = pretrain_run(replace(recipe(data, tmp_path / "run"), vocab=vocab, vocab_multiple=multiple), Silent(), "")
    model, tokenizer = hornbook.load(made)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(made))
    assert tokenizer.vocab_size == vocab and model.config["vocab_size"] == theirs.config.vocab_size == rows
    assert len(model.stem.tokens.weight) == len(theirs.get_input_embeddings().weight) == rows
    ids = torch.tensor([tokenizer.encode(sentences(1, 8)[0])])
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_the_published_example_of_padding() -> None:
    """nanoGPT pads GPT-2's 50257 rows to 50304, a multiple of 64, and so of 128."""
    gpt2 = Recipe(out="", model={**LLAMA, "vocab_size": 50257}, vocab_multiple=128)
    tokenizer = Tokenizer.train(sentences(50, 6), vocab=280)
    assert (
        model_config(gpt2, tokenizer)["vocab_size"]
        == 50304
        == model_config(replace(gpt2, vocab_multiple=64), tokenizer)["vocab_size"]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "momentum": 0.5, "nesterov": True, "decay": "wsd"}, {"optimizer": "adam", "decay": "inverse_sqrt"},
        {"optimizer": "adamw", "beta1": 0.8, "beta2": 0.99, "decay": "wsd_sqrt", "decay_steps": 3}, {"momentum": 0.8},
    ],
)  # fmt: skip
def test_a_recipes_optimizer_and_schedule_reach_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    """The groups that were saved with the last state are those of the recipe, and the logged rates those of its schedule."""
    data = tmp_path / "prose.txt"
    data.write_text("\n".join(sentences(400, 6)), encoding="utf-8")
    asked = replace(recipe(data, tmp_path / "run"), steps=6, learning_rate=1e-3, embedding_rate=1e-3, **settings)
    pretrain_run(asked, Silent(), "")
    rates = [row["learning_rate"] for row in read_lines(tmp_path / "run" / METRICS) if "learning_rate" in row]
    factor = warmup_decay(6, asked.warmup, asked.decay, asked.decay_steps)
    assert rates == pytest.approx([1e-3 * factor(step) for step in range(6)])
    state = newest_state(tmp_path / "run" / "checkpoints" / "pretrain", lambda line: None)
    assert state is not None
    group = state.groups[0][0]
    expected = {"betas": [asked.beta1, asked.beta2]} if asked.optimizer in ("adam", "adamw") else {"momentum": asked.momentum}
    assert expected.items() <= group.items() and bool(group.get("nesterov")) == asked.nesterov


def test_short_weights_and_another_dropout_leave_no_trace_in_what_is_published(tmp_path: Path) -> None:
    data = tmp_path / "prose.txt"
    data.write_text("\n".join(sentences(400, 6)), encoding="utf-8")
    asked = replace(recipe(data, tmp_path / "run"), weights="bf16", attention_dropout="keys")
    model = hornbook.load(pretrain_run(asked, Silent(), ""))[0]
    state = newest_state(tmp_path / "run" / "checkpoints" / "pretrain", lambda line: None)
    assert state is not None and {p.dtype for p in model.parameters()} == {torch.float32}
    saved = load_file(state.folder / "state.safetensors")
    masters = [value for name, value in saved.items() if name.endswith("/master")]
    assert sum(each.numel() for each in masters) == sum(p.numel() for p in model.parameters())
    assert {value.dtype for name, value in saved.items() if name.startswith("model/")} == {torch.bfloat16}
    config = json.loads((tmp_path / "run" / "pretrained" / "config.json").read_text(encoding="utf-8"))
    assert "keys" not in json.dumps(config) and model.tower.blocks[0].attn.op.spec.dropout_kind == "weights"


@pytest.mark.parametrize("settings", [{}, {"weights": "bf16"}, {"model": BERT, "objective": "masked"}], ids=["", "bf16", "masked"])
def test_a_run_that_goes_on_draws_no_weights(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.txt"
    data.write_text("\n".join(sentences(300, 6)))
    given = replace(recipe(data, tmp_path), vocab=270, steps=4, **settings)

    class Killed(Silent):
        def progress(self, step: int, steps: int, figures: dict[str, Any]) -> None:
            if step == 3:
                raise RuntimeError("killed")

    whole = pretrain_run(replace(given, out=str(tmp_path / "whole")), Silent(), "")
    cut = replace(given, out=str(tmp_path / "cut"), save_seconds=0.0)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain_run(cut, Killed(), "")
    monkeypatch.setattr(learn, "initialize", None)
    torch.use_deterministic_algorithms(True)  # memory that nobody has filled is then NaN
    try:
        continued = pretrain_run(cut, heard := Heard(), "")
    finally:
        torch.use_deterministic_algorithms(False)
    assert any(re.match(r"continuing pretrain at step [23] of 4", line) for line in heard.lines)
    assert (continued / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_switches_that_contradict_or_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights must be fp32 where precision is fp16"):
        replace(recipe(tmp_path, tmp_path), weights="bf16", precision="fp16")
    for name in ("attention", "kernels", "update"):
        with pytest.raises(ValueError, match=f"{name} must be .* or .*: 'tritn'"):
            replace(recipe(tmp_path, tmp_path), **{name: "tritn"})  # type: ignore[arg-type]
    data = tmp_path / "prose.txt"
    data.write_text("\n".join(sentences(400, 6)), encoding="utf-8")
    for settings, message in (
        ({"tf32": True}, "tf32 is not there"),
        ({"attention": "flex"}, "attention = 'flex' cannot train on this device"),
        ({"precision": "fp8"}, "precision fp8 is not there"),
        ({"kernels": "triton"}, "kernels = 'triton' needs a CUDA device"),
    ):  # fmt: skip
        given, out = replace(recipe(data, tmp_path / "run"), **settings), tmp_path / "run"  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            pretrain_run(given, Silent(), "")
        with pytest.raises(UserError, match=message):
            pretrain_run(replace(given, model=BERT, objective="masked"), Silent(), "")
        assert not out.exists(), "before any work is done"


def test_a_full_disk_is_found_before_the_corpus_is_made_and_matters_to_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, usage = tmp_path / "prose.txt", shutil.disk_usage(tmp_path)
    data.write_text("\n".join(sentences(400, 6)), encoding="utf-8")
    given = recipe(data, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
        with pytest.raises(UserError, match="the disk is too full for the states of this run"):
            pretrain_run(given, Silent(), "")
    assert not (tmp_path / "run").exists()
    made = pretrain_run(given, Silent(), "")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert pretrain_run(given, Silent(), "") == made


def test_sft_looks_at_its_switches_before_it_reads_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "prose.txt"
    data.write_text("\n".join(sentences(400, 6)), encoding="utf-8")
    pretrain_run(recipe(data, tmp_path / "run"), Silent(), "")
    monkeypatch.setattr(learn, "saved_documents", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match="kernels = 'triton' needs a CUDA device"):
        sft_run(SftRecipe(base=str(tmp_path / "run"), steps=2, rows=2, warmup=1, kernels="triton"), Silent(), "")


def test_a_vocabulary_that_is_made_whole_or_not_known_yet_is_not_refused(tmp_path: Path) -> None:
    """vocab_multiple rounds it as the run will, and a ready tokenizer has rows of its own."""
    good = replace(recipe(tmp_path, tmp_path / "run"), vocab=301, parallel=Parallel(tensor=4))
    assert check_model(good).spec.stem.vocab == 301
    assert check_model(replace(good, vocab_multiple=8)).spec.stem.vocab == 304
    assert check_model(replace(good, vocab_multiple=8, model=LLAMA | {"vocab_size": 305})).spec.stem.vocab == 312
    assert check_model(replace(good, tokenizer="gpt2")).spec.stem.vocab % 4 == 0


@pytest.mark.parametrize("sizes", [Parallel(tensor=2), Parallel(pipeline=2), Parallel(data=2, tensor=2), Parallel(data=2)])
def test_what_is_not_proven_on_several_processes_is_refused(sizes: Parallel, tmp_path: Path) -> None:
    team: Any = SimpleNamespace(sizes=sizes)
    _check_alone(recipe(tmp_path, tmp_path), team)
    with pytest.raises(UserError, match="weights = 'bf16' is proven on one process alone"):
        _check_alone(replace(recipe(tmp_path, tmp_path), weights="bf16"), team)
    compiled = replace(recipe(tmp_path, tmp_path), compile=True)
    if sizes.world == sizes.data:
        return _check_alone(compiled, team)
    with pytest.raises(UserError, match="compile = True is proven on copies alone"):
        _check_alone(compiled, team)


def masked_run(given: Recipe) -> list[dict[str, Any]]:
    """Pretrain as the recipe says; the rows of its metrics."""
    pretrain_run(given, Silent(), "")
    return read_lines(Path(given.out) / "metrics.jsonl")


def test_a_masked_model_trains_and_opens_elsewhere(tmp_path: Path) -> None:
    """Two runs are equal, none samples, and transformers reads model and tokenizer, its mask too, with the same answers."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(300, 12)), encoding="utf-8")
    given = replace(recipe(data, tmp_path / "one"), model=BERT, objective="masked", steps=3)
    first, second = masked_run(given), masked_run(replace(given, out=str(tmp_path / "two")))
    held = [[row["held_out_loss"] for row in rows if "held_out_loss" in row] for rows in (first, second)]
    assert held[0] == held[1] and len(held[0]) == 3 and not any("samples" in row for row in first)
    folder = tmp_path / "one" / "pretrained"
    theirs, names = transformers.AutoModelForMaskedLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ours, tokenizer = hornbook.load(folder)
    ids = [tokenizer.special("<|bos|>"), *tokenizer.encode("abc"), tokenizer.special("<|mask|>")]
    assert names.mask_token_id == ids[-1]
    torch.testing.assert_close(ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="is an encoder"):
        sft_run(SftRecipe(base=str(tmp_path / "one"), steps=2), Silent(), "")


def test_a_masked_model_is_asked_for_whole_words_where_its_recipe_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what it learns from and in its looks; one that sees what follows is asked for nothing of that kind."""
    data, seen = tmp_path / "data.jsonl", list[Batch]()
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(300, 12)), encoding="utf-8")
    monkeypatch.setattr(learn, "masked_lm", lambda model, batch: (seen.append(batch), masked_lm(model, batch))[1])
    masked_run(replace(recipe(data, tmp_path / "run"), model=BERT, objective="masked", mask_words=True))
    tokenizer = Tokenizer.load(tmp_path / "run" / "tokenizer")
    asked = several = 0
    rows = [row for batch in seen for row in zip(batch.tokens_bt, batch.targets_bt, strict=True)]
    for tokens_t, targets_t in rows:
        for word in words_of(tokenizer, torch.where(targets_t == IGNORE, tokens_t, targets_t).tolist()):
            found = {bool(targets_t[place] != IGNORE) for place in word}
            assert len(found) == 1
            asked, several = asked + (True in found), several + (len(word) > 1)
    assert len(seen) > 3 and asked and several
    with pytest.raises(ValueError, match="mask_words must be false where objective is causal"):
        replace(recipe(data, tmp_path / "run"), mask_words=True)


@pytest.mark.slow
def test_the_masked_recipe_learns(tmp_path: Path) -> None:
    """Held-out loss falls well under what the frequencies of tokens alone would give (their entropy on the same documents)."""
    given = replace(from_toml(Recipe, RECIPES / "town-bert.toml"), out=str(tmp_path / "run"))
    held = [row["held_out_loss"] for row in masked_run(given) if "held_out_loss" in row]
    tokenizer = hornbook.Tokenizer.load(tmp_path / "run" / "tokenizer")
    documents = saved_documents(tmp_path / "run" / "corpus", "held_out")
    counts = np.bincount([token for document in documents for token in tokenizer.encode(document.text)])
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    assert held[-1] < held[0] and held[-1] < 0.8 * entropy


def test_workers_and_a_ramp_reach_the_run(tmp_path: Path) -> None:
    """Batches that threads prepared give the same weights, also behind a ramp; and how many threads is no other run."""
    data, made = tmp_path / "data.txt", []
    data.write_text("\n\n".join(sentences(60, 40)), encoding="utf-8")
    given = replace(recipe(data, tmp_path / "one"), steps=4, accumulate=3, ramp=4)
    for name, workers in (("one", 0), ("two", 3)):
        folder = pretrain_run(replace(given, out=str(tmp_path / name), workers=workers), Silent(), "")
        made.append((folder / "model.safetensors").read_bytes())
        rows = [row for row in read_lines(tmp_path / name / METRICS) if "loss" in row]
        assert [row["tokens"] for row in rows] == [64 * 2 * used for used in (1, 2, 4, 7)]
        assert all(0 <= row["data_wait"] <= 1 for row in rows)
    assert made[0] == made[1] and not [thread for thread in threading.enumerate() if "hornbook-batches" in thread.name]
    heard = Heard()
    heard.end = heard.say  # type: ignore[method-assign]
    pretrain_run(replace(given, workers=1), heard, "")
    assert heard.lines[-1] == "kept from before"


def test_a_run_is_looked_into_as_often_as_its_recipe_says(tmp_path: Path) -> None:
    """And z-loss is part of what it learns from; how often it is looked into is not."""
    data, weights = tmp_path / "data.txt", []
    data.write_text("\n\n".join(sentences(60, 40)), encoding="utf-8")
    for monitor, z_loss in ((0, 0.0), (3, 0.0), (3, 0.1)):
        out = tmp_path / f"{monitor}-{z_loss}"
        pretrain_run(replace(recipe(data, out), steps=6, monitor=monitor, z_loss=z_loss), Silent(), "")
        rows = read_lines(out / LAYERS)
        assert [(row["stage"], row["step"]) for row in rows] == [("pretrain", step) for step in (1, 2, 4, 6) if monitor]
        assert all(row["layers"] == ["tower.blocks.0"] and row["update"][0] > 0 for row in rows)
        weights.append((out / "pretrained" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
    heard = Heard()
    heard.end = heard.say  # type: ignore[method-assign]
    pretrain_run(replace(recipe(data, tmp_path / "3-0.0"), steps=6, monitor=5), heard, "")
    assert heard.lines[-1] == "kept from before"


@pytest.mark.parametrize(("name", "value"), [("monitor", -1), ("z_loss", -0.1), ("ramp", -1), ("workers", -1)])
def test_a_look_or_a_weight_below_nothing_is_refused(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be (at least|from) 0"):
        replace(recipe(tmp_path, tmp_path), **{name: value})
