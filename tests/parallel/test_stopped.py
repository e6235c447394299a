"""Runs of one and more ranks that are stopped, hung, killed, started twice, or find the ruins of a state: R5, R6, R7 and R8."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.files import MANIFEST
from hornbook.parallel import alive, team
from tests.parallel.started import LATE, LEFT, SAVED, STEPS, Started, last_state, newest, rows

LAST = f"step-{STEPS:08d}"
FIGURES = ("step", "tokens", "loss", "bits_per_byte", "grad_norm")


@pytest.fixture(scope="module", params=[1, 2])
def world(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def whole(world: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert Started(folder, world).ended() == [0] * world
    return folder


def assert_like(folder: Path, whole: Path) -> None:
    assert newest(folder) == STEPS and last_state(folder) == last_state(whole) != {}
    for ours, theirs in zip(rows(whole), {row["step"]: row for row in rows(folder)}.values(), strict=True):
        assert [ours[name] for name in FIGURES] == [theirs[name] for name in FIGURES]


# --- R5: ruins of the state that is to be written ------------------------------------------------------------------------------


def half_written(states: Path, dice: random.Random) -> None:
    (states / LAST).rename(states / f".{LAST}.writing-{dice.randrange(2, 1 << 22)}")


def half_replaced(states: Path, dice: random.Random) -> None:
    (states / LAST).rename(states / f".{LAST}.replaced-{dice.randrange(2, 1 << 22)}")
    cut_off(states, dice, states / LAST)


def cut_off(states: Path, dice: random.Random, place: Path | None = None) -> None:
    place = place or states / LAST
    place.mkdir(exist_ok=True)
    (place / "state.safetensors").write_bytes(dice.randbytes(dice.randrange(3000)))
    (place / MANIFEST).unlink(missing_ok=True)


def without_an_end(states: Path, dice: random.Random) -> None:
    file = dice.choice([path for path in (states / LAST).iterdir() if path.stat().st_size])
    os.truncate(file, dice.randrange(file.stat().st_size))


def of_other_ranks(states: Path, dice: random.Random) -> None:
    """Parts of three ranks beside the others."""
    for number in range(3):
        (states / LAST / f"shard-{number + 1:05d}-model-00001-of-00003.safetensors").write_bytes(dice.randbytes(100))
    (states / LAST / MANIFEST).unlink()


RUINS = half_written, half_replaced, cut_off, without_an_end, of_other_ranks


def built_on(ruin: Callable[[Path, random.Random], None], folder: Path, whole: Path, world: int, dice: random.Random) -> None:
    shutil.copytree(whole / "states" / LAST, folder / "states" / LAST)
    (folder / ".lock").touch()
    ruin(folder / "states", dice)
    assert Started(folder, world).ended() == [0] * world
    assert_like(folder, whole)
    assert not list((folder / "states").glob(".*")), "the ruins are gone"


def test_a_ruin_of_the_last_state_is_in_nobodys_way(whole: Path, world: int, tmp_path: Path) -> None:
    for ruin in RUINS if world == 1 else (half_replaced, of_other_ranks):
        built_on(ruin, tmp_path / ruin.__name__, whole, world, random.Random(ruin.__name__))


@pytest.mark.soak
@pytest.mark.parametrize("count", [50])
def test_many_ruins(count: int, whole: Path, world: int, tmp_path: Path) -> None:
    dice = random.Random(world)
    for number in range(count):
        built_on(dice.choice(RUINS), tmp_path / str(number), whole, world, dice)
    print(f"{count} of {count} ruins, {world} ranks")


# --- R6: signals ------------------------------------------------------------------------------------------------------------------


def stopped_again_and_again(folder: Path, world: int, times: int, dice: random.Random, **settings: float) -> list[float]:
    """A run to its end, stopped about so often on its way by either signal to one rank or all; the seconds that each took."""
    took = list[float]()
    while newest(folder) < STEPS:
        started = Started(folder, world, **settings).at(newest(folder) + dice.randint(1, 2 * STEPS // (times + 1)))
        time.sleep(dice.uniform(0, 0.02))
        sent = started.signal(dice.choice([signal.SIGINT, signal.SIGTERM]), *dice.choice([(), (0,), (world - 1,)]))
        codes = started.ended(10.0)
        took.append(time.monotonic() - sent)
        if newest(folder) == STEPS:
            assert set(codes) <= LATE
        else:
            assert codes == [SAVED] * world, codes
            assert newest(folder) == rows(folder)[-1]["step"], "nothing that was learned is lost"
    assert Started(folder, world).ended() == [0] * world
    return took


def test_a_signal_at_any_moment_saves_and_costs_nothing(whole: Path, world: int, tmp_path: Path) -> None:
    took = stopped_again_and_again(tmp_path / "run", world, 6 // world, random.Random(0))
    assert_like(tmp_path / "run", whole)
    assert len(took) > 1 and max(took) < 10


@pytest.mark.soak
@pytest.mark.parametrize("count", [50])
def test_many_signals(count: int, whole: Path, world: int, tmp_path: Path) -> None:
    took, dice, runs = list[float](), random.Random(world), 0
    while len(took) < count:
        took += stopped_again_and_again(tmp_path / str(runs), world, 5, dice, save_seconds=0.1)
        assert_like(tmp_path / str(runs), whole)
        runs += 1
    print(f"{len(took)} signals, {runs} runs, {world} ranks: saved and out in {max(took):.2f} s at most")
    assert max(took) < 10


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_ctrl_c_leaves_at_once(ranks: int, tmp_path: Path) -> None:
    """The first rank is in a step that does not end. The other one waits for it, and may first find it gone."""
    started = Started(tmp_path / "run", ranks, stalled=(0,)).at(4)
    time.sleep(0.3)
    started.signal(signal.SIGINT)
    time.sleep(0.3)
    assert all(process.is_alive() for process in started.processes)
    sent = started.signal(signal.SIGINT)
    assert started.ended(10) in ([LEFT], [LEFT, LEFT], [LEFT, 2])
    assert time.monotonic() - sent < 3


# --- R7: a rank that hangs or dies ------------------------------------------------------------------------------------------------


def assert_named(started: Started, guilty: int, since: float, says: str) -> None:
    others = tuple(rank for rank in range(started.world) if rank != guilty)
    assert started.ended(30, others) == [2] * len(others)
    assert time.monotonic() - since < 30
    name = f"rank {guilty} ({os.uname().nodename}, process {started.processes[guilty].pid}) {says}"
    for rank in others:
        assert name in started.said(rank)


USUAL = {"patience": team.PATIENCE, "listen": alive.LISTEN}
HASTY = {"patience": 6.0}


@pytest.mark.parametrize("settings", [HASTY, pytest.param(USUAL, marks=pytest.mark.slow)], ids=["hasty", "usual"])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_stands_still_or_is_dead_is_named(number: int, settings: dict[str, float], tmp_path: Path) -> None:
    started = Started(tmp_path / "run", 2, steps=100_000, **settings).at(3)
    assert_named(started, 1, started.signal(number, 1), "gives no sign of life")


@pytest.mark.parametrize("settings", [HASTY, pytest.param(USUAL, marks=pytest.mark.slow)], ids=["hasty", "usual"])
@pytest.mark.parametrize("guilty", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_one_of_four_ranks_is_named(number: int, guilty: int, settings: dict[str, float], tmp_path: Path) -> None:
    """To all others, who leave one by one: rank 0, which has the store here, leaves when all of them know."""
    started = Started(tmp_path / "run", 4, steps=100_000, **settings).at(3)
    assert_named(started, guilty, started.signal(number, guilty), "gives no sign of life")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("settings", [HASTY, USUAL], ids=["hasty", "usual"])
def test_a_rank_that_hangs_while_its_heart_beats_is_named(settings: dict[str, float], ranks: int, tmp_path: Path) -> None:
    started = Started(tmp_path / "run", ranks, stalled=(1,), **settings).at(4)
    assert_named(started, 1, time.monotonic(), "hangs")


@pytest.mark.slow
def test_a_rank_that_stands_still_while_the_last_state_is_written_is_named(tmp_path: Path) -> None:
    """Nothing else is left to do, and a state of any size may take its time."""
    started = Started(tmp_path / "run", 2, frozen=(1,), save_seconds=1e9, **HASTY).at(STEPS)
    assert_named(started, 1, time.monotonic(), "gives no sign of life")


# --- R8: one folder, two runs -----------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_a_dead_one_followed(whole: Path, world: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = Started(folder, world, stalled=(0,)).at(4)
    second = Started(folder, world)
    assert second.ended() == [2] * world
    assert f"process {first.processes[0].pid}" in second.said(0) and "another process is writing" in second.said(world - 1)
    first.signal(signal.SIGKILL)
    first.ended()
    assert Started(folder, world).ended() == [0] * world
    assert_like(folder, whole)
