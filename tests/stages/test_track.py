"""Trackers: the rows of `metrics.jsonl`, each once, read back from what the real libraries stored."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hornbook.config import from_toml
from hornbook.errors import UserError
from hornbook.files import append_line, read_lines
from hornbook.stages.keep import METRICS
from hornbook.stages.runs import pretrain_run
from hornbook.stages.settings import Recipe
from hornbook.stages.track import tracking
from hornbook.stages.voice import Silent

ROOT = Path(__file__).resolve().parent.parent.parent
FIGURES = [
    {"stage": "pretrain", "step": 1, "loss": 5.0, "learning_rate": 0.1},
    {"stage": "pretrain", "step": 2, "loss": 4.5, "learning_rate": 0.2},
    {"stage": "pretrain", "step": 2, "held_out_loss": 4.75},
    {"stage": "pretrain", "step": 2, "samples": [{"prompt": "Once ", "text": "there\nwas"}]},
    {"stage": "pretrain", "step": 3, "left_out": "the loss is nan"},
]
MORE = [{"stage": "pretrain", "step": 3, "loss": 4.25, "learning_rate": 0.3}]
EXPECTED = {
    "loss": [(1, 5.0), (2, 4.5), (3, 4.25)], "learning_rate": [(1, 0.1), (2, 0.2), (3, 0.3)], "held_out_loss": [(2, 4.75)],
}  # fmt: skip


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


def tracked(kind: str, run: Path) -> None:
    """A run that is stopped after some rows and goes on from before the last of them, as after a kill, and back once more."""
    run.mkdir()
    for rows in (FIGURES, FIGURES[2:] + MORE + MORE):
        with tracking(kind, run, "pretrain", {"steps": 3, "model": {"hidden_size": 16}}) as track:
            for row in rows:
                append_line(run / METRICS, row)
                track(row)


def scalars(run: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads in the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / stage), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_holds_each_row_once(tmp_path: Path) -> None:
    needs("tensorboard")
    tracked("tensorboard", tmp_path / "run")
    found = scalars(tmp_path / "run", "pretrain")
    assert found.keys() == EXPECTED.keys()
    for name, points in EXPECTED.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points]
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "pretrain")).Reload()
    (sample,) = events.Tensors("samples/text_summary")
    assert b"Once there\n    was" in sample.tensor_proto.string_val[0]


# Trackio settles where it stores when it is imported: a process of its own.
TRACKIO = """
import json, sys
from pathlib import Path
from tests.stages.test_track import tracked
run = Path(sys.argv[1])
tracked("trackio", run)
import trackio
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs(run.name)
print(json.dumps([name, SQLiteStorage.get_logs(run.name, name), SQLiteStorage.get_run_config(run.name, name)], default=str))
"""


def alone(script: str, *arguments: object, **environment: str) -> str:
    """What a script prints, in a process that reaches no other machine."""
    here = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, env=here, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trackio_holds_each_row_once_in_one_run_on_this_machine(tmp_path: Path) -> None:
    needs("trackio")
    out = alone(TRACKIO, tmp_path / "run", TRACKIO_DIR=str(tmp_path / "store"), HOME=str(tmp_path))
    name, logs, config = json.loads(out)  # and nothing else was printed
    assert name.startswith("pretrain-") and config["steps"] == 3
    found = {key: [(row["step"], row[key]) for row in logs if key in row] for key in EXPECTED}
    assert found == EXPECTED
    assert [row["samples"] for row in logs if "samples" in row] == ["Once there\nwas"]
    assert [row["left_out"] for row in logs if "left_out" in row] == ["the loss is nan"]
    assert list((tmp_path / "store").rglob("*.db"))


WANDB = """
import sys
from pathlib import Path
from tests.stages.test_track import tracked
tracked("wandb", Path(sys.argv[1]))
"""


def test_wandb_is_offline_for_a_user_who_did_not_set_it_up(tmp_path: Path) -> None:
    needs("wandb")
    assert alone(WANDB, tmp_path / "run", HOME=str(tmp_path)) == ""
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and len({folder.name.split("-", 3)[3] for folder in folders}) == 1  # two parts of one run
    assert all(list(folder.glob("*.wandb")) for folder in folders)


def test_a_run_tracks_what_its_metrics_say(tmp_path: Path) -> None:
    needs("tensorboard")
    recipe = replace(from_toml(Recipe, ROOT / "recipes" / "town.toml"), out=str(tmp_path / "run"), track="tensorboard")
    model = {**recipe.model, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model["num_key_value_heads"] = 2
    pretrain_run(replace(recipe, steps=3, rows=2, corpus_bytes=100_000, conversations=20, model=model), Silent(), "")
    rows, found = read_lines(tmp_path / "run" / METRICS), scalars(tmp_path / "run", "pretrain")
    for name in ("loss", "memory", "held_out_loss"):
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert [step for step, _ in found[name]] == [step for step, _ in expected] and len(expected) > 0
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in expected], rel=1e-6)


@pytest.mark.parametrize("kind", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_there_is_said_before_any_work(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = replace(from_toml(Recipe, ROOT / "recipes" / "town.toml"), out=str(tmp_path / "run"), track=kind)
    with pytest.raises(UserError, match=f"the package {kind} is not there") as raised:
        pretrain_run(recipe, Silent(), "")
    assert "pip install" in raised.value.fix and not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "town.toml").read_text(encoding="utf-8")
    (tmp_path / "recipe.toml").write_text('track = "tensorbord"\n' + text)
    with pytest.raises(UserError, match="track"):
        from_toml(Recipe, tmp_path / "recipe.toml")


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    tracked("", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [METRICS]
