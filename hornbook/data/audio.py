"""Sound: a WAV file -> samples (N,) between -1 and 1 -> a log-mel spectrogram (mels, frames), and its variations for training.

A frame is 25 ms of sound, every 10 ms: the energy in bands that are narrow where the ear is fine, as logarithms, the last eight
powers of ten of them (Radford et al. 2023, section 2.2; mel scale and weights are those of Slaney's Auditory Toolbox, 1998).
"""

from __future__ import annotations

import math
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hornbook.errors import DamagedError, UserError

WINDOW, HOP = 0.025, 0.010  # seconds


def read_wav(path: Path) -> tuple[Tensor, int]:
    """Samples (N,), channels averaged, and how many there are per second. PCM of 8 or 16 bits; anything else is an error."""
    try:
        with path.open("rb") as file, wave.open(file) as sound:
            channels, width, rate, frames = sound.getparams()[:4]
            there = min(frames, path.stat().st_size // (channels * width))  # a header may promise more than memory holds
            content = sound.readframes(there)
    except OSError as error:
        raise UserError("a recording cannot be read", where=str(path), why=error.strerror, fix="name a WAV file") from error
    except (wave.Error, EOFError, RuntimeError, ZeroDivisionError) as error:  # RuntimeError: a chunk that ends behind its end
        why = str(error) or "its header does not hold together"
        raise DamagedError("not a WAV file of PCM samples", where=str(path), why=why, fix="record or convert it again") from error
    if width > 2:
        raise UserError("a recording has samples of too many bits", where=str(path), why=f"{8 * width}", fix="convert it to 16")
    if rate < 1 or len(content) < frames * channels * width:
        why = f"it promises {frames} frames, {rate} per second, and holds {len(content) // (channels * width)}"
        raise DamagedError("a recording is cut or damaged", where=str(path), why=why, fix="record or convert it again")
    if not frames:
        raise UserError("a recording is empty", where=str(path), fix="leave it out, or record it again")
    stored = np.frombuffer(content, "<i2") / 32768 if width == 2 else np.frombuffer(content, np.uint8) / 128 - 1
    return torch.from_numpy(stored.reshape(-1, channels).mean(1).astype(np.float32)), rate


def resampled(samples: Tensor, factor: float) -> Tensor:
    """`factor` times as many samples of the same sound, without what they cannot carry: its spectrum cut short or filled up.

    Silence goes behind it first, for a spectrum's sound goes round in a circle; as much as makes the new length nearly whole.
    """
    lengths = np.arange(len(samples) + 64, len(samples) + 576)
    length = int(lengths[np.abs(lengths * factor - np.rint(lengths * factor)).argmin()])
    spectrum, size = torch.fft.rfft(samples, length), max(1, round(length * factor))
    return torch.fft.irfft(spectrum, size)[: max(1, round(len(samples) * factor))] * (size / length)


def log_mel(samples: Tensor, rate: int, mels: int) -> Tensor:
    """(mels, frames), a frame every 10 ms, as Whisper's encoder reads it."""
    size = round(WINDOW * rate)
    samples = F.pad(samples, (0, max(0, size - len(samples))))
    spectrum = torch.stft(samples, size, round(HOP * rate), window=torch.hann_window(size), return_complex=True)
    energy = mel_filters(size // 2 + 1, mels, rate) @ spectrum[:, :-1].abs().square()
    powers = energy.clamp(min=1e-10).log10()
    return (powers.maximum(powers.max() - 8) + 4) / 4


def trimmed(samples: Tensor, rate: int, mels: int, decibels: float) -> Tensor:
    """The samples without the quiet at both ends, but for one frame of it.

    Quiet is a frame whose bands are, on average, more decibels below those of the loudest frame. How long somebody's recordings are
    quiet before and behind the voice is a fact of their making, and no model should count on it.
    """
    loud = log_mel(samples, rate, mels).mean(0) * 40  # from fours of powers of ten
    heard, hop = (loud >= loud.max() - decibels).nonzero()[:, 0], round(HOP * rate)
    return samples[max(0, int(heard[0]) - 1) * hop : (int(heard[-1]) + 2) * hop]


def paced(frames_mt: Tensor, length: int) -> Tensor:
    """(mels, length): the same sound slower or faster, between its first and its last frame by straight lines; no band is moved."""
    return F.interpolate(frames_mt[None], size=length, mode="linear", align_corners=True)[0]


def deltas(frames_mt: Tensor) -> Tensor:
    """(mels, frames): how each band rises per frame, the slope of the straight line nearest to five frames (Furui 1986).

    Where a sound lies is the speaker's throat too; how it moves is rather what is said. The end frames are repeated.
    """
    frames_mt = F.pad(frames_mt[None], (2, 2), mode="replicate")[0]
    return (frames_mt[:, 3:-1] - frames_mt[:, 1:-3] + 2 * (frames_mt[:, 4:] - frames_mt[:, :-4])) / 10


@lru_cache
def mel_filters(bins: int, mels: int, rate: int) -> Tensor:
    """Weights (mels, bins) of the spectrum's bins: triangles whose feet are the neighbours' peaks, each of area 1 over Hz."""
    hertz = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    feet = _hertz(torch.linspace(0, _mel(rate / 2), mels + 2, dtype=torch.float64))
    low, peak, high = (feet[k : mels + k, None] for k in range(3))
    triangle = torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)).clamp(min=0)
    return (triangle * 2 / (high - low)).float()


def _mel(hertz: float) -> float:
    """Linear up to 1000 Hz, 15 mels; from there 27 mels for a factor of 6.4."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) / 27 * math.log(6.4)))


@dataclass(frozen=True)
class Variation:
    """How far a recording may be changed each time that it is learned from. All 0: not at all.

    speed    up to so much faster or slower, and with it higher or lower: 0.1 is a factor of 0.9 to 1.1
    shift    seconds of silence, up to so many before it and behind it
    noise    white noise, up to this share of the recording's root mean square
    warp     the bands are moved up or down by up to this share: another length of the vocal tract (Jaitly and Hinton 2013)
    tilt     the bands are made louder and quieter, smoothly, by about so much, in fours of powers of ten: another microphone
    masks    so many bands of up to `masked_mels` mels, and of up to `masked_frames` frames, are set to the mean
             (SpecAugment without its warp: Park et al. 2019, section 2)
    """

    speed: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    warp: float = 0.0
    tilt: float = 0.0
    masks: int = 0
    masked_mels: int = 8
    masked_frames: int = 8

    def sound(self, samples: Tensor, rate: int, dice: np.random.Generator) -> Tensor:
        """The samples faster or slower, with silence around them and noise on them, as `dice` draws it."""
        if self.speed:
            samples = resampled(samples, 1 / (1 + dice.uniform(-self.speed, self.speed)))
        before, behind = (int(dice.uniform(0, self.shift) * rate) for _ in range(2))
        loud = float(samples.square().mean().sqrt())
        samples = F.pad(samples, (before, behind))
        if self.noise:
            drawn = torch.from_numpy(dice.standard_normal(len(samples), np.float32))
            samples = samples + drawn * (loud * float(dice.uniform(0, self.noise)))
        return samples

    def frames(self, frames_mt: Tensor, dice: np.random.Generator) -> Tensor:
        """The spectrogram of another throat and microphone, with some of its rows and columns hidden."""
        mels, mean = len(frames_mt), float(frames_mt.mean())
        if self.warp:
            place_m1 = (torch.arange(mels)[:, None] * (1 + dice.uniform(-self.warp, self.warp))).clamp(max=mels - 1)
            low_m = place_m1[:, 0].long()
            frames_mt = frames_mt[low_m].lerp(frames_mt[(low_m + 1).clamp(max=mels - 1)], place_m1.frac().to(frames_mt.dtype))
        if self.tilt:
            waves_mk = torch.cos(math.pi * torch.linspace(0, 1, mels)[:, None] * torch.arange(1, 4)) / torch.arange(1, 4)
            frames_mt = frames_mt + waves_mk @ torch.from_numpy(dice.standard_normal((3, 1), np.float32) * np.float32(self.tilt))
        hidden = torch.zeros_like(frames_mt, dtype=torch.bool)
        for _ in range(self.masks):
            for across, most in ((hidden, self.masked_mels), (hidden.mT, self.masked_frames)):
                width = int(dice.integers(0, min(most, len(across)) + 1))
                start = int(dice.integers(0, len(across) - width + 1))
                across[start : start + width] = True
        return frames_mt.masked_fill(hidden, mean)
