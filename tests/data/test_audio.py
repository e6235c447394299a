"""Sound: files good and bad, resampling against the sine that it must give, and Whisper's features as transformers makes them."""

from __future__ import annotations

import math
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from hornbook.data.audio import Variation, deltas, log_mel, mel_filters, paced, read_wav, resampled, trimmed
from hornbook.errors import DamagedError, UserError


def wav(path: Path, content: bytes, channels: int = 1, width: int = 2, rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return path


def tone(hertz: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_that_were_written(channels: int, rate: int, tmp_path: Path) -> None:
    values = [0, 1, -1, 32767, -32768, 1000]
    path = wav(tmp_path / "a.wav", struct.pack("<6h", *values), channels, rate=rate)
    samples, found = read_wav(path)
    wanted = [sum(values[n : n + channels]) / channels / 32768 for n in range(0, 6, channels)]
    assert found == rate and samples.dtype == torch.float32 and samples.tolist() == pytest.approx(wanted, abs=1e-7)
    samples, _ = read_wav(wav(tmp_path / "b.wav", bytes([128, 0, 255, 192]), channels, width=1))
    eight = [0.0, -1.0, 127 / 128, 0.5]
    assert samples.tolist() == [sum(eight[n : n + channels]) / channels for n in range(0, 4, channels)]


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = wav(tmp_path / "a.wav", bytes(200)).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut.wav").write_bytes(whole[:end])
        with pytest.raises(DamagedError, match="cut.wav"):
            read_wav(tmp_path / "cut.wav")


def test_a_hostile_header_ends_in_an_error_or_in_samples(tmp_path: Path) -> None:
    """Any byte of the header may hold anything: an error of ours, or sound; and never memory for what is not there."""
    whole, dice, refused = wav(tmp_path / "a.wav", bytes(100)).read_bytes(), np.random.default_rng(0), 0
    for _ in range(600):
        changed = bytearray(whole)
        for place in dice.integers(0, 44, 1 + int(dice.integers(3))):
            changed[place] = int(dice.choice([0, 1, 2, 127, 255]))
        (tmp_path / "b.wav").write_bytes(changed)
        try:
            samples, rate = read_wav(tmp_path / "b.wav")
            assert rate > 0 and 0 < len(samples) <= 100
        except UserError as error:
            refused += 1
            assert "b.wav" in str(error) and error.fix
    assert 100 < refused < 600


def test_what_is_no_recording_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound at all, but a text that is long enough for a header")
    cases = {
        "text.wav": DamagedError, "missing.wav": UserError, ".": UserError,
        wav(tmp_path / "empty.wav", b"").name: UserError, wav(tmp_path / "deep.wav", bytes(12), width=3).name: UserError,
    }  # fmt: skip
    for name, kind in cases.items():
        with pytest.raises(kind, match="Fix:"):
            read_wav(tmp_path / name)


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.1, 0.9, 16000 / 11025, 8000 / 44100, 1.0])
def test_a_resampled_sine_is_the_sine(factor: float) -> None:
    rate = 16000
    found = resampled(tone(440, rate), factor)
    assert abs(len(found) - rate * 0.5 * factor) <= 1
    inner = slice(int(400 * factor), int(7000 * factor))
    places = torch.arange(len(found), dtype=torch.float64) / factor / rate
    wanted = torch.sin(2 * math.pi * 440 * places)
    assert (found - wanted)[inner].abs().max() < 2e-3


def test_a_tone_that_the_lower_rate_cannot_carry_is_gone() -> None:
    assert resampled(tone(6000, 16000), 0.5)[200:-200].abs().max() < 2e-3  # a plain pick of every second sample would give 2000 Hz
    assert tone(6000, 16000)[::2].abs().max() > 0.9


@pytest.mark.parametrize(("rate", "mels"), [(16000, 80), (16000, 128), (8000, 40), (22050, 20)])
def test_filters_are_slaneys(rate: int, mels: int) -> None:
    bins = round(0.025 * rate) // 2 + 1
    theirs = mel_filter_bank(bins, mels, 0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    assert np.abs(mel_filters(bins, mels, rate).numpy() - theirs.T).max() < 1e-7


@pytest.mark.parametrize("samples", [2, 399, 1600, 16037])
def test_the_spectrogram_is_whispers(samples: int) -> None:
    dice = torch.Generator().manual_seed(samples)
    sound = torch.randn(samples, generator=dice) * 0.1
    padded = torch.nn.functional.pad(sound, (0, max(0, 400 - samples)))  # shorter than one window: silence behind
    theirs = WhisperFeatureExtractor()(padded.numpy(), sampling_rate=16000, padding=False, return_tensors="pt").input_features[0]
    ours = log_mel(sound, 16000, 80)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_silence_has_a_spectrogram() -> None:
    assert log_mel(torch.zeros(800), 8000, 40).eq(-1.5).all()  # (log10 1e-10 + 4) / 4


@pytest.mark.parametrize(("before", "behind"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.5, 1.0), (0.004, 0.013)])
def test_the_quiet_ends_are_cut_and_no_more(before: float, behind: float) -> None:
    """A tone within a thousandth of noise (60 decibels), with a pause: what is kept is tone and pause, within two windows."""
    dice, rate = np.random.default_rng(0), 8000
    parts = [np.zeros(int(before * rate)), tone(440, rate, 0.2).numpy(), np.zeros(800), tone(900, rate, 0.1).numpy()]
    clean = np.concatenate([*parts, np.zeros(int(behind * rate))])
    noisy = torch.from_numpy((clean + dice.standard_normal(len(clean)) * 1e-3).astype(np.float32))
    kept = trimmed(noisy, rate, 24, 20)
    start = int((noisy.unfold(0, len(kept), 1) == kept).all(1).nonzero()[0])
    first, last = int(before * rate), len(noisy) - int(behind * rate)
    assert max(0, first - 320) <= start <= first and last <= start + len(kept) <= min(len(noisy), last + 320)
    assert torch.equal(trimmed(noisy, rate, 24, 200), noisy)
    quieter = trimmed(noisy * 0.01, rate, 24, 20)
    torch.testing.assert_close(quieter, kept * 0.01)  # however loud the recording is


def test_what_is_trimmed_is_what_a_slow_search_finds() -> None:
    """Frame by frame from each end, in decibels from the definition."""
    dice = np.random.default_rng(1)
    for seed in range(20):
        swell = np.interp(np.arange(6000), np.linspace(0, 6000, 12), dice.uniform(-4, 0, 12))  # powers of ten
        sound = torch.from_numpy((dice.standard_normal(6000) * 10**swell).astype(np.float32))
        powers = (log_mel(sound, 8000, 24).double().numpy() * 4 - 4).T  # log10 of the energy
        loud = [10 * sum(row) / len(row) for row in powers]
        first, last = 0, len(loud) - 1
        while loud[first] < max(loud) - 25:
            first += 1
        while loud[last] < max(loud) - 25:
            last -= 1
        assert torch.equal(trimmed(sound, 8000, 24, 25), sound[max(0, 80 * (first - 1)) : 80 * (last + 2)]), seed


def test_silence_is_not_trimmed() -> None:
    assert len(trimmed(torch.zeros(800), 8000, 24, 30)) == 800


@pytest.mark.parametrize("length", [1, 7, 20, 33])
def test_another_pace_is_numpys_interpolation(length: int) -> None:
    frames = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    wanted = np.stack([np.interp(np.linspace(0, 19, length), np.arange(20), row) for row in frames.numpy()])
    torch.testing.assert_close(paced(frames, length), torch.from_numpy(wanted).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_deltas_are_the_slopes_of_numpys_straight_lines(length: int) -> None:
    frames = torch.randn(5, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = np.pad(frames.numpy(), ((0, 0), (2, 2)), mode="edge")
    wanted = [np.polyfit(np.arange(5), held[:, start : start + 5].T, 1)[0] for start in range(length)]
    torch.testing.assert_close(deltas(frames), torch.from_numpy(np.stack(wanted, 1)), rtol=0, atol=1e-12)


VARIATION = Variation(speed=0.2, shift=0.1, noise=0.3, warp=0.1, tilt=0.1, masks=2)


def test_variations_are_drawn_from_the_dice_alone() -> None:
    def varied(seed: int) -> torch.Tensor:
        dice = np.random.default_rng(seed)
        return VARIATION.frames(log_mel(VARIATION.sound(tone(440, 8000), 8000, dice), 8000, 40), dice)

    assert torch.equal(varied(1), varied(1))
    assert len({varied(seed).shape[1] for seed in range(20)}) > 5
    plain, dice = tone(440, 8000), np.random.default_rng(0)
    assert torch.equal(Variation().sound(plain, 8000, dice), plain)
    assert torch.equal(Variation().frames(log_mel(plain, 8000, 40), dice), log_mel(plain, 8000, 40))


def test_each_variation_stays_within_its_bounds() -> None:
    plain = tone(440, 8000)
    frames = log_mel(plain, 8000, 40)
    for seed in range(50):
        dice = np.random.default_rng(seed)
        assert 4000 / 1.2 - 1 <= len(Variation(speed=0.2).sound(plain, 8000, dice)) <= 4000 / 0.8 + 1
        shifted = Variation(shift=0.1).sound(plain, 8000, dice)
        start = int(shifted.nonzero()[0]) - 1
        assert torch.equal(shifted[start : start + 4000], plain) and len(shifted) <= 5600
        added = Variation(noise=0.3).sound(plain, 8000, dice) - plain
        assert added.square().mean() <= (0.33 * 0.5**0.5) ** 2
        hidden = (Variation(masks=1, masked_mels=3, masked_frames=4).frames(frames, dice) != frames).float()
        rows, columns = hidden.mean(1) == 1, hidden.mean(0) == 1
        assert rows.sum() <= 3 and columns.sum() <= 4
        assert not hidden[~rows][:, ~columns].any()


def test_another_throat_moves_the_bands_and_another_microphone_weighs_them() -> None:
    """A peak is moved by at most the share that was asked for; what is added by a tilt is the same curve in every frame."""
    peak = torch.zeros(40, 6)
    peak[20] = 1
    found = {int(Variation(warp=0.2).frames(peak, np.random.default_rng(seed)).sum(1).argmax()) for seed in range(60)}
    assert min(found) >= 20 / 1.2 - 1 and max(found) <= 20 / 0.8 + 1 and len(found) > 4
    frames = log_mel(tone(440, 8000), 8000, 40)
    added = Variation(tilt=0.1).frames(frames, np.random.default_rng(0)) - frames
    assert (added - added[:, :1]).abs().max() < 1e-6 < 0.02 < added.abs().max() < 1
    assert added[:, 0].diff().abs().max() < 0.1


def test_faster_is_higher() -> None:
    spectrum = torch.fft.rfft(resampled(tone(400, 8000), 1 / 1.25), 8000).abs()
    assert abs(int(spectrum.argmax()) - 500) <= 2
