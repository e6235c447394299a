"""How often a voice that was never heard is misunderstood: recipes/digits-ctc.toml, each speaker left out of training in turn.

    OMP_NUM_THREADS=1 python -m benchmarks.digits --folder RECORDINGS

RECORDINGS: LABEL_SPEAKER_*.wav, such as those of the Free Spoken Digit Dataset. known: the share of the held-out recordings for
which another of the texts known from training has a smaller CTC loss than what was said. free: the share for which the likeliest
letters, by a prefix beam without any list of words, are not exactly those of what was said. seconds: the processor's, of training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hornbook.config import from_toml
from hornbook.data.recordings import read_recordings
from hornbook.ranks import processor
from hornbook.stages.settings import SpeechRecipe
from hornbook.stages.speech import speech_run
from hornbook.stages.voice import Silent

HERE = Path(__file__).parent
ROW = "{:10} {:>10} {:>8} {:>8} {:>8}"


class Clock(Silent):
    """Hears how long the stage of training takes."""

    def begin(self, stage: str, doing: str) -> None:
        self.stage, self.start = stage, time.process_time()

    def end(self, outcome: str) -> None:
        if self.stage == "speech":
            self.seconds = time.process_time() - self.start


def shown(row: dict[str, Any]) -> str:
    shares = [f"{row[name]:.1%}" for name in ("known", "free")]
    return ROW.format(row["speaker"], row["recordings"], *shares, f"{row['seconds']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes" / "digits-ctc.toml")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "digits.json")
    given = parser.parse_args()
    recipe = replace(from_toml(SpeechRecipe, given.recipe), folder=given.folder)
    speakers = sorted({recording.speaker for recording in read_recordings(Path(given.folder), recipe.spelling)})
    rows = list[dict[str, Any]]()
    print(ROW.format("speaker", "recordings", "known", "free", "seconds"))
    for speaker in speakers:
        clock = Clock()
        with tempfile.TemporaryDirectory() as out:
            found = speech_run(replace(recipe, held_out=speaker, out=f"{out}/run"), clock, "")
        assert found.known_wrong is not None
        shares = {"known": found.known_wrong / found.recordings, "free": found.spelled_wrong / found.recordings}
        rows.append({"speaker": speaker, **asdict(found), **shares, "seconds": round(clock.seconds, 1)})
        print(shown(rows[-1]), flush=True)
    mean = {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in ("known", "free", "seconds")}
    print(shown({"speaker": "mean", "recordings": "", **mean}))
    about = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__, "seed": recipe.seed}
    given.out.write_text(json.dumps({**about, "speakers": rows, "mean": mean}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
