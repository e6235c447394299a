"""The one writer: what is written is whole or not there, whatever happens, and what was changed is found."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.checkpoint.state import Keep, newest_state, snapshot, write_snapshot
from hornbook.errors import BusyError, DamagedError, UserError
from hornbook.files import MANIFEST, append_line, digest, held, read_lines, sha256, verified, write_json, write_text, written_folder
from hornbook.optim.build import build_optimizer
from tests.reference.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(target: Path, text: str) -> None:
    with written_folder(target, {"text": text, "list": [1, 2.5, None], "字": "ü"}) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "b.bin").write_bytes(bytes(range(256)))
        (folder / "empty").touch()


def test_a_written_folder_verifies_and_is_alone(tmp_path: Path) -> None:
    write(tmp_path / "far" / "kept", "one")
    assert verified(tmp_path / "far" / "kept") == {"text": "one", "list": [1, 2.5, None], "字": "ü"}
    manifest = json.loads((tmp_path / "far" / "kept" / MANIFEST).read_text())
    sums = subprocess.run(["sha256sum", "a.txt"], cwd=tmp_path / "far" / "kept", capture_output=True, text=True, check=True)
    assert manifest["files"]["a.txt"] == {"bytes": 3, "sha256": sums.stdout.split()[0]}
    write(tmp_path / "far" / "kept", "two")
    assert verified(tmp_path / "far" / "kept")["text"] == "two"
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["kept"]


@pytest.mark.parametrize("there", [False, True], ids=["fresh", "over an old one"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(errno.EIO, "input/output error")])
def test_an_error_inside_leaves_what_was_there(tmp_path: Path, there: bool, error: Any) -> None:
    if there:
        write(tmp_path / "kept", "old")
    before = contents(tmp_path)
    with pytest.raises(type(error) if isinstance(error, OSError) else error), written_folder(tmp_path / "kept") as folder:
        (folder / "a.txt").write_text("new")
        raise error
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["kept"] if there else [])


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path) -> None:
    """The second of the two renames fails: the temporary folder is gone."""
    write(tmp_path / "kept", "old")
    before = contents(tmp_path)

    def spoil(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "os.rename" and str(arguments[1]).endswith("/kept") and ".writing-" in str(arguments[0]):
            active.clear()
            shutil.rmtree(arguments[0])

    active = [True]
    sys.addaudithook(spoil)  # stays for the process, and does nothing after it has struck once
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "kept", "new")
    assert not active
    assert contents(tmp_path) == before


def test_a_name_that_looks_like_a_pattern_is_mended_and_cleared_too(tmp_path: Path) -> None:
    write(tmp_path / "run [1]*", "old")
    (tmp_path / "run [1]*").rename(tmp_path / ".run [1]*.replaced-7")
    (tmp_path / ".run [1]*.writing-8").mkdir()
    (tmp_path / ".run 1.writing-8").mkdir()
    with pytest.raises(RuntimeError), written_folder(tmp_path / "run [1]*"):
        raise RuntimeError
    assert {path.name for path in tmp_path.iterdir()} == {"run [1]*", ".run 1.writing-8"}
    assert verified(tmp_path / "run [1]*")["text"] == "old"


def test_folders_of_many_names_leave_nothing_in_memory(tmp_path: Path) -> None:
    """As a long run's states: Python's caches once kept ten objects of each name."""
    objects = list[int]()
    for number in range(40):
        write(tmp_path / f"step-{number}", "one")
        if number in (9, 39):
            gc.collect()
            objects.append(len(gc.get_objects()))
    assert objects[1] < objects[0] + 30, "less than one of each name"


def killed(folder: Path, kind: str) -> list[Path]:
    """The places where a writer was killed, by the number of the operation, the last one finished."""
    command = [sys.executable, "-m", "tests.killed_writer", str(folder), kind]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    return sorted(folder.iterdir(), key=lambda place: int(place.name))


def test_a_folder_killed_at_any_operation_is_old_or_new(tmp_path: Path) -> None:
    places, between = killed(tmp_path, "folder"), 0
    assert len(places) > 15
    for place in places:
        if not (place / "kept").exists():  # killed between the two renames: the next writer puts the old one back
            between += 1
            with pytest.raises(RuntimeError), written_folder(place / "kept"):
                raise RuntimeError
            assert verified(place / "kept") == {"content": "old"}
        content = verified(place / "kept")["content"]
        assert (place / "kept" / "a.txt").read_text() == content * 1000
        with written_folder(place / "kept", {"content": "next"}):
            pass
        assert [path.name for path in place.iterdir()] == ["kept"], "the next writer removes what the killed one left"
        assert verified(place / "kept") == {"content": "next"}
    assert between <= 1


def test_a_file_killed_at_any_operation_is_old_or_new(tmp_path: Path) -> None:
    places = killed(tmp_path, "file")
    found = [(place / "kept.txt").read_text() for place in places]
    assert set(found) == {"old" * 1000, "new" * 1000}
    assert found == sorted(found, reverse=True), "old until it is replaced, and new from then on"


def test_a_folder_from_a_child_killed_inside_is_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "kept", "old")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom hornbook.files import written_folder\n"
        "with written_folder(Path(sys.argv[1])) as folder:\n    (folder / 'a.txt').write_text('new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "kept")], cwd=ROOT, check=False)
    assert ran.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "the child's half-written folder is beside it"
    assert verified(tmp_path / "kept")["text"] == "old"
    write(tmp_path / "kept", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Each byte of each file, the manifest too, unless the manifest still says the same."""
    with written_folder(tmp_path / "kept", {"step": 12, "name": "one"}) as folder:
        (folder / "a.txt").write_text("some text")
        (folder / "b.bin").write_bytes(bytes(range(64)))
    assert verified(tmp_path / "kept")
    said = json.loads((tmp_path / "kept" / MANIFEST).read_text())
    for path in sorted((tmp_path / "kept").iterdir()):
        sound = path.read_bytes()
        for place in range(len(sound)):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
            if path.name == MANIFEST:
                with contextlib.suppress(ValueError):
                    if json.loads(path.read_bytes()) == said:
                        continue
            with pytest.raises(DamagedError):
                verified(tmp_path / "kept")
        path.write_bytes(sound)
    assert verified(tmp_path / "kept")


@pytest.mark.parametrize("name", ["a.txt", "inner/b.bin", MANIFEST])
@pytest.mark.parametrize("damage", ["lost", "cut", "longer", "a folder"])
def test_lost_and_cut_and_longer_files_are_found(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path / "kept", "one")
    path = tmp_path / "kept" / name
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 3)
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    with pytest.raises(DamagedError) as error:
        verified(tmp_path / "kept")
    assert name in str(error.value.where)


def test_an_empty_file_that_grew_is_found(tmp_path: Path) -> None:
    write(tmp_path / "kept", "one")
    (tmp_path / "kept" / "empty").write_text("x")
    with pytest.raises(DamagedError):
        verified(tmp_path / "kept")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small file system may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def assert_says_what_to_do(error: UserError, path: Path) -> None:
    assert str(path) in str(error) and "MB are free" in str(error)
    assert re.search(r"Fix: .*--out", str(error))


def test_a_full_disk_is_an_error_with_a_remedy(small_disk: Path) -> None:
    write(small_disk / "kept", "old")
    write_text(small_disk / "file.txt", "old")
    append_line(small_disk / "rows.jsonl", {"row": 1})
    before = contents(small_disk)
    with pytest.raises(UserError) as folder_error, written_folder(small_disk / "kept") as folder:
        (folder / "big").write_bytes(bytes(1_000_000))
    with pytest.raises(UserError) as text_error:
        write_text(small_disk / "file.txt", "x" * 1_000_000)
    with pytest.raises(UserError) as row_error:
        append_line(small_disk / "rows.jsonl", {"row": "x" * 1_000_000})
    for error, name in ((folder_error, "kept"), (text_error, "file.txt"), (row_error, "rows.jsonl")):
        assert_says_what_to_do(error.value, small_disk / name)
    assert read_lines(small_disk / "rows.jsonl") == [{"row": 1}]
    os.truncate(small_disk / "rows.jsonl", len(before["rows.jsonl"]))
    assert contents(small_disk) == before


def test_a_training_state_that_finds_the_disk_full(small_disk: Path) -> None:
    """Tensors are written by a library that has its own kind of error."""
    model = tiny_model(dtype=torch.float32)
    optimizer, run = build_optimizer(model, "adamw", 0.01), {"name": "one"}
    write_snapshot(small_disk, snapshot(1, model, optimizer, {"sample": 0}, run), Keep())
    before = contents(small_disk)
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(UserError) as error:
        write_snapshot(small_disk, snapshot(2, model, optimizer, {"sample": 1}, run), Keep())
    assert_says_what_to_do(error.value, small_disk / "step-00000002")
    (small_disk / "filler").unlink()
    assert contents(small_disk) == before
    found = newest_state(small_disk, lambda line: None)
    assert found is not None and found.step == 1


def test_a_file_size_limit_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """Where nobody may mount anything: a limit of the process, in a process of its own."""
    write(tmp_path / "kept", "old")
    code = """
import resource, sys
from pathlib import Path
from hornbook.errors import UserError
from hornbook.files import written_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with written_folder(Path(sys.argv[1])) as folder:
        (folder / "big").write_bytes(bytes(1_000_000))
except UserError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "kept")], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(tmp_path / "kept") in ran.stdout and re.search(r"Fix: .*ulimit", ran.stdout)
    assert verified(tmp_path / "kept")["text"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_file_in_the_way_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for target in (tmp_path / "taken", tmp_path / "taken" / "kept"):
        with pytest.raises(UserError, match="a file stands where a folder is needed"), written_folder(target):
            raise AssertionError("not reached")
        with pytest.raises(UserError, match="a file stands where a folder is needed"), held(target):
            raise AssertionError("not reached")
    assert (tmp_path / "taken").read_text() == "mine"


HOLDER = """
import sys, time
from pathlib import Path
from hornbook.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_folder_is_busy_until_its_holder_dies(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(BusyError) as error, held(tmp_path / "run"):
            raise AssertionError("not reached")
        assert f"process {child.pid}" in str(error.value) and error.value.fix
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with held(tmp_path / "run"):  # the lock of a dead process is no lock
        with pytest.raises(BusyError, match=f"process {os.getpid()}"), held(tmp_path / "run"):
            raise AssertionError("not reached")
    with held(tmp_path / "run"):
        pass


ROWS: list[dict[str, Any]] = [
    {"step": 1, "text": "plain"},
    {"step": 2, "text": "ends of line: \n \r \x85 \u2028 \u2029 \x1c \x0b"},
    {"step": 3, "text": "字é😀", "loss": 0.1 + 0.2},
]


def test_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_lines(path) == []
    for row in ROWS:
        append_line(path, row)
    assert read_lines(path) == ROWS
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == ROWS


def test_a_cut_last_row_is_left_out_and_harms_no_other(tmp_path: Path) -> None:
    """Cut at every byte, also inside a character; then another row follows."""
    path = tmp_path / "rows.jsonl"
    for row in ROWS:
        append_line(path, row)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = ROWS if cut >= len(whole) - 1 else ROWS[:2]
        assert read_lines(path) == kept
        append_line(path, {"step": 4})
        assert read_lines(path) == [*kept, {"step": 4}]


def test_texts_and_json_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "far" / "file.json"
    for value in ({"a": "字\n", "b": [1, None, 2.5]}, ["other"]):
        write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value
    write_text(path, "")
    assert path.read_bytes() == b""
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file.txt", "new" * 10_000 + "\ud800")
    assert contents(tmp_path) == {"file.txt": b"old"}


def test_digests(tmp_path: Path) -> None:
    """A value's digest is that of its JSON with sorted keys, whatever the order; a file's is the one that everybody computes."""
    assert digest({"b": [1, 2], "a": "字"}) == digest({"a": "字", "b": [1, 2]}) != digest({"a": "字", "b": [2, 1]})
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
