"""Recordings of speech and what is said in them -> batches of log-mel frames and letters.

A folder of files named LABEL_SPEAKER_*.wav, or a .tsv or .jsonl file of rows with `file`, `text` and maybe `speaker`. Each time a
recording is taken it is varied anew, drawn from (seed, epoch, sample) alone, so that a run can be taken up at any sample.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hornbook.batch import IGNORE, Batch
from hornbook.data.audio import HOP, Variation, deltas, log_mel, paced, read_wav, resampled, trimmed
from hornbook.errors import UserError

ROOM = 1.0  # four powers of ten: what is quieter than the loudest by more is the room and the microphone, not the voice


@dataclass(frozen=True)
class Recording:
    """What is said in a file, in lower case, and by whom; "" where nobody says."""

    file: Path
    text: str
    speaker: str = ""


def read_recordings(place: Path, spelling: Mapping[str, str]) -> list[Recording]:
    """The recordings of a folder or a list, in the order of their names; `spelling` gives the text of a label, such as 0: zero."""
    if place.suffix in (".tsv", ".jsonl"):
        found = [_recording(place, number, row) for number, row in enumerate(_rows(place), 1)]
    else:
        names = [(path, path.stem.split("_")) for path in sorted(place.rglob("*.wav"))]
        found = [Recording(path, parts[0], parts[1] if len(parts) > 2 else "") for path, parts in names]
    if not found:
        why = "there is no .wav file in it" if place.is_dir() else "it has no rows" if place.exists() else "there is nothing there"
        fix = "name a folder of LABEL_SPEAKER_*.wav, or a .tsv or .jsonl file of file, text and speaker"
        raise UserError("no recordings", where=str(place), why=why, fix=fix)
    return [Recording(each.file, spelling.get(each.text, each.text).strip().lower(), each.speaker) for each in found]


def _rows(place: Path) -> list[Any]:
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
        if place.suffix == ".jsonl":
            return [json.loads(line) for line in lines if line.strip()]
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError("the list of recordings cannot be read", where=str(place), why=str(error), fix="correct it") from error


def _recording(place: Path, number: int, row: Any) -> Recording:
    values = [row.get(key) for key in ("file", "text")] if isinstance(row, dict) else [None]
    if not all(isinstance(value, str) and value for value in values):
        fix = "give each row a file and a text, and a speaker if you like"
        raise UserError("a row names no recording", where=f"{place}: row {number}", why=repr(row)[:200], fix=fix)
    return Recording(place.parent / row["file"], row["text"], str(row.get("speaker") or ""))


class SpeechRows:
    """Recordings as samples of `data/batches.py`: frames (B, mels, S) of mean 0 and deviation 1, and the ids of letters.

    letters    the alphabet: letter i has the id i + 1, and 0 is CTC's blank; a letter that is not in it cannot be learned from
    trim       decibels: what is quieter than the loudest frame by more is cut off at both ends; 0: nothing is
    pace       frames that every recording is brought to, give or take the variation of speed; 0: as many as it has
    deltas     behind the bands, as many slopes of them, also of deviation 1: frames are (B, 2 mels, S)
    """

    def __init__(
        self, recordings: Sequence[Recording], letters: str, rate: int, mels: int, variation: Variation | None = None,
        seed: int = 0, trim: float = 0.0, pace: int = 0, deltas: bool = False,
    ):  # fmt: skip
        self.texts = [recording.text for recording in recordings]
        self.letters, self.rate, self.mels, self.variation, self.seed, self.pace = letters, rate, mels, variation, seed, pace
        self.deltas = deltas
        self.samples = [self._at_rate(*read_wav(recording.file)) for recording in recordings]
        if trim:
            self.samples = [trimmed(samples, rate, mels, trim) for samples in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch:
        frames = [self.frames(int(sample), epoch) for sample in samples]
        texts = [self.texts[sample] for sample in samples]
        lengths = torch.tensor([len(frames_tm) for frames_tm in frames])
        return Batch(
            pad_sequence(frames, batch_first=True).mT,
            pad_sequence([spelled_ids(text, self.letters) for text in texts], batch_first=True, padding_value=IGNORE),
            text_bytes=sum(len(text.encode()) for text in texts), padding_bs=torch.arange(int(lengths.max())) < lengths[:, None],
        )  # fmt: skip

    def longest(self) -> float:
        """Seconds of the longest recording as it may be varied."""
        if self.pace:
            return self.pace * HOP * (1 if self.variation is None else 1 + self.variation.speed)
        most = max(map(len, self.samples)) / self.rate
        return most if self.variation is None else most / (1 - self.variation.speed) + 2 * self.variation.shift

    def _at_rate(self, samples: Tensor, rate: int) -> Tensor:
        return samples if rate == self.rate else resampled(samples, self.rate / rate)

    def frames(self, sample: int, epoch: int) -> Tensor:
        """(S, mels or twice as many) of one recording, varied as in that epoch where there is a variation."""
        dice, samples = np.random.Generator(np.random.PCG64([self.seed, epoch, sample])), self.samples[sample]
        if self.variation is not None:
            samples = self.variation.sound(samples, self.rate, dice)
        frames_mt = log_mel(samples, self.rate, self.mels)
        frames_mt = frames_mt.maximum(frames_mt.max() - ROOM)
        if self.pace:
            speed = 0.0 if self.variation is None else self.variation.speed
            frames_mt = paced(frames_mt, round(self.pace * (1 + dice.uniform(-speed, speed))))
        if self.variation is not None:
            frames_mt = self.variation.frames(frames_mt, dice)
        parts = [frames_mt - frames_mt.mean(), *([deltas(frames_mt)] if self.deltas else [])]
        return torch.cat([part / part.std().clamp(min=1e-3) for part in parts]).mT  # however loud the recording is


def spelled_ids(text: str, letters: str) -> Tensor:
    """The ids of a text's letters; `ValueError` at one that the alphabet lacks."""
    return torch.tensor([letters.index(letter) + 1 for letter in text], dtype=torch.long)
