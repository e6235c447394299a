"""Recordings of speech -> a model that spells what it hears, and how often it errs on a speaker that it never heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hornbook import families
from hornbook.batch import IGNORE, Batch
from hornbook.checkpoint.pretrained import load_model, write_model
from hornbook.config import to_toml
from hornbook.data.audio import HOP, Variation
from hornbook.data.recordings import Recording, SpeechRows, read_recordings, spelled_ids
from hornbook.errors import UserError, near
from hornbook.files import MANIFEST, append_line, digest, sha256, write_json, write_text, written_folder
from hornbook.generation.ctc import prefix_beam
from hornbook.model import TransformerModel, Undrawn, initialize
from hornbook.parallel.team import Team
from hornbook.ranks import choose_device
from hornbook.stages.keep import METRICS, begun, kept, run_folder, states
from hornbook.stages.settings import SpeechRecipe, learned, usual
from hornbook.stages.train import Stage, check, train
from hornbook.stages.voice import Voice
from hornbook.train.ctc import ctc, ctc_loss

# What a row of metrics keeps: the others count tokens, which sound has not.
FIGURES = (
    "stage", "step", "steps", "loss", "left_out", "learning_rate", "grad_norm", "seconds", "seconds_left", "data_wait", "memory",
)  # fmt: skip
BEAM, MOST_KNOWN = 16, 1000  # prefixes; texts that are few enough to be compared one by one


@dataclass(frozen=True)
class Errors:
    """Of so many recordings: how often another known text was likelier (None: too many are known), how often the letters that were
    spelled freely were not the text's, and by how many insertions, deletions and changes of how many letters."""

    recordings: int
    known_wrong: int | None
    spelled_wrong: int
    letters_wrong: int
    letters: int

    def __str__(self) -> str:
        known = "" if self.known_wrong is None else f"{self._share(self.known_wrong)} not recognised among the known texts; "
        freely = f"{self._share(self.spelled_wrong)} not spelled right freely"
        share = self.letters_wrong / max(1, self.letters)
        return f"{known}{freely}; {self.letters_wrong} of {self.letters} letters wrong ({share:.1%})"

    def _share(self, wrong: int) -> str:
        return f"{wrong} of {self.recordings} ({wrong / self.recordings:.1%})"


def speech_run(recipe: SpeechRecipe, voice: Voice, command: str) -> Errors:
    """Train in `recipe.out` on all speakers but `recipe.held_out`, and measure on that one. Writes `model` and `errors.json`."""
    device, out = choose_device(recipe.device), Path(recipe.out)
    voice.say(f"device: {device}")
    heard, held_out = _divided(read_recordings(Path(recipe.folder), recipe.spelling), recipe)
    letters = "".join(sorted({letter for recording in heard for letter in recording.text}))
    config = {
        "architectures": ["SpeechEncoderForCTC"], **recipe.model, "vocab_size": len(letters) + 1, "letters": letters,
        "sampling_rate": recipe.rate, "trim": recipe.trim, "pace": recipe.pace, "deltas": recipe.deltas,
    }  # fmt: skip
    if config.get("model_type") != "speech_ctc":
        raise UserError(
            f"model_type must be speech_ctc: {config.get('model_type')!r}", where="[model]: model_type", fix="correct it"
        )
    with Undrawn():
        model = families.build(config, "[model]")
    if not (out / "model" / MANIFEST).exists():  # what is finished needs nothing
        check(model, recipe, Team(device=device), states(out, "speech"))
    variation = Variation(**{each.name: getattr(recipe, each.name) for each in fields(Variation)})
    sound: dict[str, Any] = {key: getattr(recipe, key) for key in ("rate", "trim", "pace", "deltas")}
    rows = SpeechRows(heard, letters, mels=config["num_mel_bins"], variation=variation, seed=recipe.seed, **sound)
    unheard = SpeechRows(held_out, letters, mels=config["num_mel_bins"], **sound)
    _fits(max(rows.longest(), unheard.longest()), config["max_source_positions"])
    with run_folder(out):
        model = _trained(recipe, model, rows, [sha256(recording.file) for recording in heard], out, device, voice, command)
        voice.begin("measure", f"{len(held_out)} recordings of {recipe.held_out}")
        found = measure(model, unheard, sorted(set(rows.texts)))
        write_json(out / "errors.json", {"held_out": recipe.held_out, **asdict(found)})
        voice.end(str(found))
    return found


def _divided(recordings: list[Recording], recipe: SpeechRecipe) -> tuple[list[Recording], list[Recording]]:
    speakers = {recording.speaker for recording in recordings}
    if recipe.held_out not in speakers:
        raise UserError(
            f"held_out must be one of the speakers: {recipe.held_out!r}", where=recipe.folder,
            fix=near(recipe.held_out, speakers) if speakers - {""} else "name the files LABEL_SPEAKER_*.wav, or list the speakers",
        )  # fmt: skip
    if len(speakers) == 1:
        raise UserError("there is one speaker alone", where=recipe.folder, fix="add recordings of another")
    heard = [recording for recording in recordings if recording.speaker != recipe.held_out]
    return heard, [recording for recording in recordings if recording.speaker == recipe.held_out]


def _fits(seconds: float, positions: int) -> None:
    if round(seconds / HOP) + 1 > 2 * positions:
        raise UserError(
            f"max_source_positions must hold the longest recording: {positions}", where="[model]: max_source_positions",
            why=f"it lasts {seconds:.2f} seconds with its variations, and a position 0.02",
            fix=f"set it to {round(seconds / HOP) // 2 + 1}, or leave long recordings out",
        )  # fmt: skip


def _trained(
    recipe: SpeechRecipe, model: TransformerModel, rows: SpeechRows, files: list[str], run: Path, device: torch.device,
    voice: Voice, command: str,
) -> TransformerModel:  # fmt: skip
    """The model of `run`, trained if it is not there yet, continued if it was stopped. `files`: the hashes of the recordings."""
    inputs, folder = {"recordings": digest([files, rows.texts]), **learned(recipe), "model": model.config}, run / "model"
    size = sum(parameter.numel() for parameter in model.parameters())
    voice.begin("speech", f"{size:,} parameters, {len(rows)} recordings, {recipe.steps} steps")
    if kept(folder, inputs, usual(recipe)):
        voice.end("kept from before")
        kept_model = load_model(folder)
        assert isinstance(kept_model, TransformerModel)
        return kept_model.to(device)
    inputs = begun(run, "speech", inputs, usual(recipe)) or inputs
    write_text(run / "recipe.toml", to_toml(asdict(recipe)))
    model.to(device)

    def log(row: dict[str, Any]) -> dict[str, Any]:
        row = {key: row[key] for key in FIGURES if key in row}
        append_line(run / METRICS, row)
        voice.progress(row["step"], recipe.steps, {"loss": row["loss"]} if "loss" in row else {})
        return row

    def spelled(batch: Batch) -> list[str]:
        return ["".join(rows.letters[i - 1] for i in ids if i != IGNORE) for ids in batch.targets_bt.tolist()]

    stage = Stage("speech", inputs, run, Team(device=device), voice, command, log, spelled)
    train(model, rows, recipe, ctc, stage, draw=lambda: initialize(model, recipe.seed))
    with written_folder(folder, {"inputs": inputs}) as target:
        write_model(model, target)
    voice.end(f"wrote {folder}")
    return model


@torch.no_grad()
def measure(model: TransformerModel, rows: SpeechRows, known: Sequence[str]) -> Errors:
    """How the model does on recordings: choosing among `known` texts by their CTC losses, and spelling freely by a prefix beam."""
    device, chosen, spelled = next(model.parameters()).device, list[str](), list[str]()
    for number in range(len(rows)):
        logits_tv = model(rows.frames(number, epoch=0).mT[None].to(device))[0].cpu()
        best = prefix_beam(logits_tv.log_softmax(-1), BEAM)[0][0]
        spelled.append("".join(rows.letters[i - 1] for i in best))
        if len(known) <= MOST_KNOWN:
            chosen.append(likeliest(logits_tv, known, rows.letters))
    wrong = sum(text != said for text, said in zip(chosen, rows.texts, strict=True)) if chosen else None
    pairs = list(zip(spelled, rows.texts, strict=True))
    freely, changes = sum(text != said for text, said in pairs), sum(edits(text, said) for text, said in pairs)
    return Errors(len(rows), wrong, freely, changes, sum(map(len, rows.texts)))


def likeliest(logits_tv: Tensor, known: Sequence[str], letters: str) -> str:
    """The one of the known texts whose CTC loss is the least."""
    targets_bl = pad_sequence([spelled_ids(text, letters) for text in known], batch_first=True)
    lengths_b = torch.tensor([len(text) for text in known])
    loss_b = ctc_loss(logits_tv.expand(len(known), -1, -1), targets_bl, torch.full_like(lengths_b, len(logits_tv)), lengths_b)
    return known[int(loss_b.argmin())]


def edits(found: str, wanted: str) -> int:
    """The fewest insertions, deletions and changes of letters between two texts (Levenshtein 1966)."""
    row = list(range(len(wanted) + 1))
    for number, letter in enumerate(found, 1):
        above, row = row, [number]
        for column, other in enumerate(wanted, 1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (letter != other)))
    return row[-1]
