"""Recordings: folders and lists in, the same batch for the same sample of the same epoch out."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from hornbook.batch import IGNORE
from hornbook.data.audio import Variation, deltas, log_mel, trimmed
from hornbook.data.batches import Batches
from hornbook.data.recordings import Recording, SpeechRows, read_recordings
from hornbook.errors import UserError

LETTERS = "abc"


def recorded(path: Path, hertz: float = 440, seconds: float = 0.2, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) * 20_000
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(sound.astype("<i2").tobytes())
    return path


@pytest.fixture
def rows(tmp_path: Path) -> SpeechRows:
    texts = ["a", "abc", "", "cab", "bb"]
    files = [recorded(tmp_path / f"{n}.wav", 300 + 100 * n, 0.1 + 0.05 * n) for n in range(len(texts))]
    variation = Variation(speed=0.2, shift=0.05, noise=0.1, masks=1)
    return SpeechRows(
        [Recording(file, text) for file, text in zip(files, texts, strict=True)], LETTERS, 8000, 20, variation, seed=3
    )


def test_a_folder_names_label_and_speaker(tmp_path: Path) -> None:
    for name in ("1_ann_0.wav", "deep/0_bob_12.wav", "Yes_ann_3_4.wav", "0_7.wav"):
        recorded(tmp_path / name)
    found = {r.file.name: (r.text, r.speaker) for r in read_recordings(tmp_path, {"0": "zero"})}
    assert found == {
        "1_ann_0.wav": ("1", "ann"), "0_bob_12.wav": ("zero", "bob"), "Yes_ann_3_4.wav": ("yes", "ann"), "0_7.wav": ("zero", ""),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_a_list_names_file_text_and_maybe_speaker(kind: str, tmp_path: Path) -> None:
    rows = [{"file": "x/a.wav", "text": 'He said "Hi"', "speaker": "ann"}, {"file": "b.wav", "text": "zwei", "speaker": ""}]
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)] if kind == "tsv" else map(json.dumps, rows)
    (tmp_path / f"list.{kind}").write_text("\n".join(lines) + "\n")
    assert read_recordings(tmp_path / f"list.{kind}", {}) == [
        Recording(tmp_path / "x" / "a.wav", 'he said "hi"', "ann"), Recording(tmp_path / "b.wav", "zwei"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "{"), ("a.jsonl", "[1]"), ("a.jsonl", '{"file": "a.wav"}'), ("a.jsonl", '{"file": "a.wav", "text": 3}'),
        ("a.jsonl", ""), ("a.tsv", "file\ttext\n"), ("a.tsv", "path\ttext\na.wav\tx\n"), ("a.tsv", "file\ttext\na.wav\n"),
        ("sub", None), ("gone.tsv", None),
    ],
)  # fmt: skip
def test_a_place_without_recordings_says_why(name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="Fix:") as refused:
        read_recordings(tmp_path / name, {})
    assert name in str(refused.value)


def test_a_batch_is_frames_letters_and_what_is_padding(rows: SpeechRows) -> None:
    batch = rows.take(np.array([1, 2, 4]), epoch=5)
    assert batch.padding_bs is not None and batch.targets_bt.tolist() == [[1, 2, 3], [IGNORE] * 3, [2, 2, IGNORE]]
    assert (batch.text_bytes, batch.tokens_bt.shape[:2]) == (5, (3, 20))
    for row, sample in enumerate((1, 2, 4)):
        alone = rows.take(np.array([sample]), epoch=5)
        length = alone.tokens_bt.shape[2]
        assert torch.equal(batch.tokens_bt[row, :, :length], alone.tokens_bt[0])
        assert batch.padding_bs[row].sum() == length and not batch.tokens_bt[row, :, length:].any()


def test_each_epoch_varies_anew_and_a_run_can_be_taken_up_at_any_sample(rows: SpeechRows) -> None:
    assert rows.frames(1, 0).shape != rows.frames(1, 1).shape or not torch.equal(rows.frames(1, 0), rows.frames(1, 1))
    whole = Batches(rows, 2, seed=1)
    taken = [(whole.state(), next(whole)) for _ in range(9)]
    for state, batch in reversed(taken):
        other = Batches(rows, 2, seed=1)
        other.load_state(state)
        again = next(other)
        assert torch.equal(again.tokens_bt, batch.tokens_bt) and torch.equal(again.targets_bt, batch.targets_bt)


def test_without_a_variation_the_frames_are_the_recordings_alone(tmp_path: Path) -> None:
    quiet, slow = recorded(tmp_path / "a.wav", 440, 0.2), recorded(tmp_path / "b.wav", 440, 0.2, rate=22050)
    rows = SpeechRows([Recording(quiet, "a"), Recording(slow, "a")], LETTERS, 8000, 20)
    frames = log_mel(rows.samples[0], 8000, 20)
    frames = frames.maximum(frames.max() - 1)
    torch.testing.assert_close(rows.frames(0, 7), ((frames - frames.mean()) / frames.std()).mT)
    assert torch.equal(rows.frames(0, 7), rows.frames(0, 0)) and rows.longest() == pytest.approx(0.2, abs=1e-3)
    assert rows.samples[0].shape == rows.samples[1].shape
    assert (rows.samples[0] - rows.samples[1])[50:-50].abs().max() < 5e-3  # the same tone, recorded at another rate


def test_deltas_stand_behind_the_bands_as_large_as_these(rows: SpeechRows, tmp_path: Path) -> None:
    given = [Recording(tmp_path / f"{number}.wav", "a") for number in range(2)]  # two of the fixture's
    both = SpeechRows(given, LETTERS, 8000, 20, rows.variation, seed=3, deltas=True)
    for epoch in range(4):
        bands, slopes = both.frames(1, epoch).split(20, dim=1)
        torch.testing.assert_close(bands, rows.frames(1, epoch))
        torch.testing.assert_close(slopes, (found := deltas(bands.mT).mT) / found.std())
    assert both.take(np.array([0, 1]), 0).tokens_bt.shape[:2] == (2, 40)


def test_no_varied_recording_is_longer_than_the_longest(rows: SpeechRows) -> None:
    most = max(len(rows.frames(4, epoch)) for epoch in range(200))
    assert 0.9 * rows.longest() < most * 0.01 <= rows.longest() + 0.01


def test_the_quiet_ends_are_cut_before_anything_is_varied(tmp_path: Path) -> None:
    sound = np.concatenate([np.zeros(2400), np.sin(np.arange(1600) * 0.3) * 20_000, np.zeros(4000)])
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(sound.astype("<i2").tobytes())
    given = [Recording(tmp_path / "a.wav", "a")]
    whole, cut = (SpeechRows(given, LETTERS, 8000, 20, Variation(speed=0.1), trim=trim) for trim in (0.0, 30.0))
    assert torch.equal(cut.samples[0], trimmed(whole.samples[0], 8000, 20, 30)) and 1600 <= len(cut.samples[0]) <= 2240
    assert whole.longest() == pytest.approx(1 / 0.9) and cut.longest() <= 0.28 / 0.9
    assert len(cut.frames(0, 0)) < len(whole.frames(0, 0)) / 3


def test_one_pace_makes_all_recordings_as_long_but_for_the_variation_of_speed(tmp_path: Path) -> None:
    given = [Recording(recorded(tmp_path / f"{n}.wav", 440, 0.1 + 0.2 * n), "a") for n in range(3)]
    rows = SpeechRows(given, LETTERS, 8000, 20, pace=30)
    assert [len(rows.frames(n, 0)) for n in range(3)] == [30] * 3 and rows.longest() == pytest.approx(0.3)
    varied = SpeechRows(given, LETTERS, 8000, 20, Variation(speed=0.2, shift=0.05), pace=30)
    lengths = {len(varied.frames(n, epoch)) for n in range(3) for epoch in range(60)}
    assert min(lengths) in (24, 25) and max(lengths) in (35, 36) and varied.longest() == pytest.approx(0.36)
