"""When a finished stage is kept, when it is made again, and when a folder is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hornbook.errors import BusyError, UserError
from hornbook.files import written_folder
from hornbook.stages.keep import kept, lineage, run_folder, timed, timings


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    with written_folder(tmp_path / "stage", {"inputs": {"seed": 1, "data": "town"}}) as target:
        (target / "words.txt").write_text("some words")
    return tmp_path / "stage"


def test_a_stage_is_kept_for_the_very_inputs_it_was_made_from(stage: Path) -> None:
    assert kept(stage, {"seed": 1, "data": "town"})
    assert kept(stage, {"data": "town", "seed": 1})
    with pytest.raises(UserError, match="seed was 1 and is now 2"):
        kept(stage, {"seed": 2, "data": "town"})
    with pytest.raises(UserError, match="more was None and is now 0"):
        kept(stage, {"seed": 1, "data": "town", "more": 0})


def test_a_stage_that_is_not_there_or_damaged_is_made_again(stage: Path) -> None:
    assert not kept(stage.with_name("other"), {})
    (stage / "words.txt").write_text("some werds")
    assert not kept(stage, {"seed": 1, "data": "town"})


def test_a_folder_without_a_manifest_is_somebody_elses(stage: Path) -> None:
    (stage / "manifest.json").unlink()
    with pytest.raises(UserError, match="did not write"):
        kept(stage, {"seed": 1, "data": "town"})
    assert (stage / "words.txt").exists()


def test_a_lineage_tells_contents_apart_and_not_places(tmp_path: Path) -> None:
    for place, words in (("a", "one"), ("b", "one"), ("c", "two")):
        with written_folder(tmp_path / place, {"inputs": place}) as target:
            (target / "words.txt").write_text(words)
    one, same, other = (lineage(tmp_path / place) for place in "abc")
    assert one == same != other


def test_a_run_folder_is_new_empty_or_ours(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with run_folder(out):
        (out / "work.txt").write_text("begun")
    with run_folder(out), pytest.raises(BusyError), run_folder(out):
        pass
    (tmp_path / "theirs").mkdir()
    with run_folder(tmp_path / "theirs"):
        pass
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UserError, match="thesis.txt"), run_folder(tmp_path / "full"):
        pass
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_times_of_a_run_that_was_cut_short_add_up(tmp_path: Path) -> None:
    with timed(tmp_path, "corpus"):
        pass
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "pretrain"):
        raise KeyboardInterrupt
    with timed(tmp_path, "pretrain"):
        pass
    rows = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert list(timings(tmp_path)) == ["corpus", "pretrain"]
    assert sum(timings(tmp_path).values()) == pytest.approx(sum(row["seconds"] for row in rows))
