"""The speech stage: a language of tones is learned from two voices and understood from a third; and the real digits."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import signal
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from hornbook.checkpoint.pretrained import load_model
from hornbook.config import from_toml
from hornbook.errors import Interrupted, UserError
from hornbook.families import build
from hornbook.files import read_lines, verified
from hornbook.model import Context, initialize
from hornbook.stages import speech
from hornbook.stages.replay import replay
from hornbook.stages.settings import SpeechRecipe
from hornbook.stages.speech import edits, likeliest, speech_run
from hornbook.stages.voice import Silent
from hornbook.train.guard import Guard

ROOT = Path(__file__).resolve().parent.parent.parent
TONES = {"a": 400.0, "b": 900.0, "c": 2000.0}  # hertz
VOICES = {"low": 0.94, "high": 1.06, "middle": 1.0}
WORDS = ["a", "b", "ab", "ba", "ca", "abc", "cab"]
MODEL = {
    "model_type": "speech_ctc", "num_mel_bins": 20, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "activation_function": "gelu", "max_source_positions": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of tones, one tone per letter, in three voices, twice."""
    folder, dice = tmp_path_factory.mktemp("tones"), random.Random(0)
    for voice, pitch in VOICES.items():
        for number, word in enumerate(WORDS * 2):
            parts = [np.sin(2 * np.pi * TONES[letter] * pitch * np.arange(dice.randrange(500, 900)) / 8000) for letter in word]
            with wave.open(str(folder / f"{word}_{voice}_{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((np.concatenate(parts) * 9000).astype("<i2").tobytes())
    return folder


def recipe(tones: Path, out: Path, **changes: Any) -> SpeechRecipe:
    given = SpeechRecipe(
        out=str(out),
        model=MODEL,
        folder=str(tones),
        held_out="middle",
        rows=7,
        steps=6,
        embedding_rate=0.01,
        trim=40.0,
        shift=0.02,
        noise=0.05,
        warmup=5,
        save_seconds=math.inf,
    )
    return dataclasses.replace(given, **changes)


def test_a_language_of_tones_is_understood_from_a_voice_never_heard(tones: Path, tmp_path: Path) -> None:
    found = speech_run(recipe(tones, tmp_path / "run", steps=40), Silent(), "")
    assert (found.recordings, found.letters) == (14, 2 * len("".join(WORDS)))
    assert found.known_wrong == 0 and found.spelled_wrong <= 2 and found.letters_wrong <= 2
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["step"] == 40 and rows[-1]["loss"] < 0.5 < 3 < rows[0]["loss"]
    assert json.loads((tmp_path / "run" / "errors.json").read_text()) == {"held_out": "middle", **dataclasses.asdict(found)}


def test_a_finished_run_is_kept_and_a_changed_one_refused(tones: Path, tmp_path: Path) -> None:
    first = speech_run(recipe(tones, tmp_path / "run"), Silent(), "")
    about = verified(tmp_path / "run" / "model")
    assert speech_run(recipe(tones, tmp_path / "run"), Silent(), "") == first
    assert verified(tmp_path / "run" / "model") == about and len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 6
    config = load_model(tmp_path / "run" / "model").config
    assert [config[name] for name in ("letters", "vocab_size", "sampling_rate", "trim", "pace")] == ["abc", 4, 8000, 40.0, 0]
    assert speech_run(recipe(tones, tmp_path / "run", device="cpu", update="plain", workers=1), Silent(), "") == first
    for _ in range(2):  # the second time there are states alone
        with pytest.raises(UserError, match="belongs to another run") as error:
            speech_run(recipe(tones, tmp_path / "run", held_out="low", noise=0.1), Silent(), "")
        assert error.value.why == "recordings changed, held_out was 'middle' and is now 'low', noise was 0.05 and is now 0.1"
        shutil.rmtree(tmp_path / "run" / "model", ignore_errors=True)


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = speech_run(recipe(tones, tmp_path / "whole"), Silent(), "")
    objective, calls = speech.ctc, 0

    def stopping(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(*given)

    monkeypatch.setattr(speech, "ctc", stopping)
    with pytest.raises(Interrupted, match="hornbook speech r.toml"):
        speech_run(recipe(tones, tmp_path / "cut"), Silent(), "hornbook speech r.toml")
    assert speech_run(recipe(tones, tmp_path / "cut"), Silent(), "") == whole and calls == 6
    first, second = (load_model(tmp_path / name / "model").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_that_is_left_out_is_taken_again(tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "judge", lambda self, loss, norm: "odd")
    with pytest.raises(UserError, match="learned from"):
        speech_run(recipe(tones, tmp_path, model={**MODEL, "dropout": 0.1}), Silent(), "")
    record = replay(tmp_path / "checkpoints/speech/incidents/step-00000002", torch.device("cpu"))
    assert record["again"] == {"loss": record["loss"], "gradient_norm": record["gradient_norm"]}
    assert len(record["rows"]) == 7 and all(row["text"] in WORDS for row in record["rows"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"held_out": "midle"}, "did you mean 'middle'"), ({"held_out": ""}, "known: high, low, middle"),
        ({"folder": "nowhere"}, "nowhere"), ({"model": {**MODEL, "max_source_positions": 3}}, "max_source_positions"),
        ({"kernels": "triton"}, "needs a CUDA device"),
        ({"model": {"model_type": "speech_ctc"}}, "d_model"), ({"model": {"model_type": "llama"}}, "speech_ctc"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_before_any_work(changes: dict[str, Any], named: str, tones: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        speech_run(recipe(tones, tmp_path / "run", **changes), Silent(), "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("frames", [[40, 21, 32], [17, 18, 1]])
def test_a_padded_recording_gives_what_it_gives_alone(frames: list[int]) -> None:
    """At its own positions, one per two frames; odd lengths end within a position."""
    model = initialize(build({**MODEL, "vocab_size": 5}), 0, std=0.2).double().eval()
    generator = torch.Generator().manual_seed(0)
    alone = [torch.randn(length, MODEL["num_mel_bins"], generator=generator, dtype=torch.float64) for length in frames]
    padding_bs = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
    together_btv = model(pad_sequence(alone, batch_first=True).mT, Context(padding_bs=padding_bs))
    for row, x_sm in enumerate(alone):
        found_tv = model(x_sm.mT[None])[0]
        torch.testing.assert_close(together_btv[row, : len(found_tv)], found_tv, rtol=0, atol=1e-10)


def test_edits_are_the_fewest() -> None:
    """Against the definition, by recursion."""

    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    dice = random.Random(0)
    for _ in range(150):
        a, b = ("".join(dice.choices("ab", k=dice.randrange(6))) for _ in range(2))
        assert edits(a, b) == slow(a, b)
    assert edits("kitten", "sitting") == 3


def test_the_likeliest_known_text_is_the_one_that_the_frames_spell() -> None:
    sure = torch.full((5, 4), -9.0)
    sure[range(5), [1, 1, 0, 1, 3]] = 9
    assert likeliest(sure, ["a", "aa", "aac", "ab"], "abc") == "aac"


def test_the_recipe_trains(tones: Path, tmp_path: Path) -> None:
    given = from_toml(SpeechRecipe, ROOT / "recipes" / "digits-ctc.toml")
    speech_run(dataclasses.replace(given, folder=str(tones), held_out="low", steps=2, out=str(tmp_path / "run")), Silent(), "")
    assert given.model.items() <= load_model(tmp_path / "run" / "model").config.items()


@pytest.mark.slow
def test_digits_of_speakers_never_heard(data_folder: Path, tmp_path: Path) -> None:
    """Each speaker is held out once; on average, at most three of ten digits are taken for another."""
    given = from_toml(SpeechRecipe, ROOT / "recipes" / "digits-ctc.toml")
    given, found = dataclasses.replace(given, folder=str(data_folder / "tasks" / "fsdd")), {}
    for speaker in ("george", "jackson", "lucas", "nicolas"):
        found[speaker] = speech_run(dataclasses.replace(given, held_out=speaker, out=str(tmp_path / speaker)), Silent(), "")
    assert sum(errors.known_wrong or 0 for errors in found.values()) <= 0.3 * sum(e.recordings for e in found.values()), found
