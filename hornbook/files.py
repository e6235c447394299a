"""The one writer of run state: a file or a folder is either whole or not there.

A folder is written under a temporary name beside its place; every file is flushed to disk, a manifest with sizes and sha256 comes
last, then the folder takes its name. A reader trusts only a folder whose manifest verifies. Metrics alone are appended to.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hornbook.errors import BusyError, DamagedError, UserError

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """The sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextmanager
def written_folder(target: Path, about: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder to fill; on a clean exit it becomes `target`, with `about` kept in its manifest.

    A folder that stood at `target` is replaced. On any error the temporary folder goes and `target` stays as it was. A full disk
    or a folder that may not be written is a `UserError`. No file system replaces a folder in one step: a kill between the two
    renames leaves the old one beside its place, and the next writer of the same target puts it back before it begins.
    """
    temporary = target.with_name(f".{target.name}.writing-{os.getpid()}")
    with _disk_errors(target):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        _mend_and_forget_leftovers(target)
        temporary.mkdir()
    try:
        with _disk_errors(target):
            yield temporary
            _seal(temporary, about or {})
            _take_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _seal(folder: Path, about: dict[str, Any]) -> None:
    """Flush every file and folder, and write the manifest, which carries its own digest, last."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    record = json.loads(json.dumps({"about": about, "files": files}))  # as a reader will see it
    sealed = json.dumps(record | {"digest": digest(record)}, indent=1, ensure_ascii=False) + "\n"
    _write_synced(folder / MANIFEST, sealed.encode("utf-8"))
    _sync_folder(folder)


def _take_place(temporary: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _mend_and_forget_leftovers(target: Path) -> None:
    """Put back the folder that a writer was killed while replacing, and remove what else killed writers left."""
    # Not by a pattern of this name: Python keeps what it made of each one, and a name may hold a pattern's signs.
    beside = sorted(target.parent.iterdir())
    kinds = (f".{target.name}.replaced-", f".{target.name}.writing-")
    replaced, writing = ([path for path in beside if path.name.startswith(kind)] for kind in kinds)
    if replaced and not target.exists():
        replaced.pop(0).rename(target)
    for path in replaced + writing:
        shutil.rmtree(path, ignore_errors=True)


def verified(folder: Path) -> dict[str, Any]:
    """The `about` of a folder whose every file has the size and sha256 of its manifest; `DamagedError` otherwise."""
    manifest = folder / MANIFEST
    try:
        record = json.loads(manifest.read_text(encoding="utf-8"))
        files, about, seal = record["files"], record["about"], record["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "it was never written to its end" if isinstance(error, FileNotFoundError) else str(error)
        raise DamagedError("no manifest that can be read", where=str(manifest), why=why, fix="delete the folder") from error
    if digest({"about": about, "files": files}) != seal:
        raise DamagedError("the manifest was changed", where=str(manifest), why="its digest differs", fix="delete the folder")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise DamagedError(
                "a stored file differs from its manifest",
                where=str(path),
                why="it was cut, changed or lost",
                fix="delete the folder",
            )
    return dict(about)


@contextmanager
def continued(path: Path) -> Iterator[BinaryIO]:
    """Yield what an earlier call left of `path`, open to add to it; on a clean exit it becomes `path`, on an error it stays."""
    part = path.with_name(path.name + ".part")
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step."""
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
        try:
            _write_synced(temporary, content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line; a reader takes the last row of a step that was run twice and leaves out a line that a kill cut."""
    with _disk_errors(path), path.open("a+b") as file:
        cut = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
        file.write((b"\n" if cut else b"") + json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:  # bytes: a kill may cut inside a character
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the line that a kill cut; the step behind it was run again
    return rows


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold `folder` against a second writer; the lock of a process that died is free by itself."""
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise BusyError(
                "another process is writing this folder", where=str(folder), why=f"process {file.read().strip() or 'unknown'}",
                fix="wait for it, stop it, or choose another --out",
            ) from error  # fmt: skip
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        file.close()


def holder(folder: Path) -> int | None:
    """The living process that holds `folder`, as far as this machine knows; looking takes nothing from it."""
    try:
        process = int((folder / ".lock").read_text())
        os.kill(process, 0)
    except PermissionError:
        return process
    except (OSError, ValueError, OverflowError):
        return None
    return process if process > 0 else None


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into an error with a remedy."""
    try:
        yield
    except OSError as error:
        fixes = {
            errno.ENOSPC: "free some space, or write elsewhere with --out; the same command then continues",
            errno.EDQUOT: "free some of your quota, or write elsewhere with --out; the same command then continues",
            errno.EFBIG: "raise the file size limit (ulimit -f), or write elsewhere with --out",
            errno.EACCES: "choose a folder that you may write with --out",
            errno.EPERM: "choose a folder that you may write with --out",
            errno.EROFS: "choose a folder that you may write with --out",
            errno.ENOTDIR: "a file stands where a folder is needed: choose another --out",
            errno.EEXIST: "a file stands where a folder is needed: choose another --out",
        }
        if error.errno not in fixes:
            raise
        place = shutil.disk_usage(_existing(path)).free
        raise UserError(
            f"cannot write {path}", where=str(error.filename or path), why=f"{error.strerror}; {place / 1e6:.0f} MB are free there",
            fix=fixes[error.errno],
        ) from error  # fmt: skip


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
