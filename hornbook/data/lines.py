"""A packed or plain file in; its lines, JSON items or pieces out, in bounded memory.

The one idea: the same stream of unpacked chunks feeds all cutters, and none of them holds more than one record. What is over
the limit comes out as None instead of bytes, so that a hundred megabytes without a line end, or a small archive that unpacks to
a thousand times its size, costs time and not memory. A stream that breaks off raises `Rejected` after its good part.
"""

from __future__ import annotations

import bz2
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from hornbook.errors import UserError

CHUNK_BYTES = 2**16
_JSON_MARK = re.compile(rb'[][{}",\\]')
_BLANK = b" \t\r\n"


class Rejected(Exception):
    """A record or a file that cannot be used; `place` where it is known better than the caller knows it."""

    def __init__(self, reason: str, detail: str, place: str = ""):
        self.reason, self.detail, self.place = reason, detail, place
        super().__init__(f"{reason}: {detail}")


def unpacked(path: str) -> Iterator[bytes]:
    """The bytes of a file without packing and byte order mark, in chunks of at most `CHUNK_BYTES`.

    Raises `Rejected` for a file that is empty, unreadable, no text (a NUL byte at its start), or cut: then after its good part.
    """
    unpack = PACKINGS.get(os.path.splitext(path.lower())[1], _plain)
    position = 0
    try:
        with open(path, "rb") as file:
            for part in unpack(file):
                for start in range(0, len(part), CHUNK_BYTES):
                    chunk = part[start : start + CHUNK_BYTES]
                    yield _opening(chunk) if position == 0 else chunk
                    position += len(chunk)
    except (EOFError, zlib.error, OSError) as error:
        # Only what comes from the system carries an errno; gzip and bz2 raise bare OSErrors about the data.
        system = isinstance(error, OSError) and error.errno is not None
        detail = f"{error} (after {position:,} unpacked bytes)"
        raise Rejected("unreadable" if system else "damaged", detail) from error
    if position == 0:
        raise Rejected("empty file", "no bytes")


def _opening(chunk: bytes) -> bytes:
    """The first chunk of a file without its byte order mark, if it is text at all."""
    if chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Rejected("bad utf-8", "the file is UTF-16")
    if (at := chunk.find(b"\0")) >= 0:
        raise Rejected("binary", f"NUL at byte {at}")
    return chunk.removeprefix(b"\xef\xbb\xbf")


def _plain(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _gz(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as stream:
        while chunk := stream.read1(CHUNK_BYTES):  # read1 gives what came before a break; read loses it
            yield chunk


def _bz2(file: BinaryIO) -> Iterator[bytes]:
    with bz2.BZ2File(file) as stream:
        while chunk := stream.read1(CHUNK_BYTES):
            yield chunk


def _zst(file: BinaryIO) -> Iterator[bytes]:
    """Zstandard frames one after another.

    zstandard's own reader takes a cut file for a whole one, so frames are unpacked here. Four packed bytes can stand for
    128 kB: small portions in keep the portions out small.
    """
    try:
        import zstandard
    except ImportError as error:
        raise UserError("reading .zst needs zstandard", where=file.name, fix="pip install 'hornbook[data]'") from error
    frame, open_frame = zstandard.ZstdDecompressor().decompressobj(), False
    while portion := file.read(256):
        while portion:
            try:
                text = frame.decompress(portion)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            yield text
            portion, open_frame = frame.unused_data, not frame.eof
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
    if open_frame:
        raise EOFError("the last frame is not complete")


PACKINGS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {".gz": _gz, ".bz2": _bz2, ".zst": _zst}


def lines(chunks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines with their line ends; None for a line of more than `limit` bytes."""
    number, size = 1, 0
    held: list[bytes] = []
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            held.append(line)
            size += len(line)
            yield number, b"".join(held) + b"\n" if size <= limit else None
            number, size = number + 1, 0
            held.clear()
        held.append(rest)
        size += len(rest)
        if size > limit:
            held.clear()
    if size:
        yield number, b"".join(held) if size <= limit else None


def pieces(numbered: Iterable[tuple[int, bytes]], size: int) -> Iterator[tuple[int, bytes]]:
    """Lines put together to pieces of at most `size` bytes, each with the number of its first line; joined they are the text.

    A piece ends after the last blank line that fits; without one, after the last line that fits; and a line that is longer by
    itself is cut between two characters. Where a number is missing, a piece ends too.
    """
    held: list[tuple[int, bytes]] = []
    total = safe = 0  # bytes held, and how many of the parts end with a blank line

    def release(keep: int) -> tuple[int, bytes]:
        nonlocal total, safe
        piece = held[0][0], b"".join(part for _, part in held[:keep])
        del held[:keep]
        total, safe = total - len(piece[1]), 0
        return piece

    broken: Rejected | None = None
    try:
        for number, line in numbered:
            if held and number > held[-1][0] + 1:
                yield release(len(held))
            for part in _cut(line, size):
                while held and total + len(part) > size:
                    yield release(safe or len(held))
                held.append((number, part))
                total += len(part)
                if not part.strip():
                    safe = len(held)
    except Rejected as error:  # what was read before the break still counts
        broken = error
    if held:
        yield release(len(held))
    if broken:
        raise broken


def _cut(line: bytes, size: int) -> Iterator[bytes]:
    """A line in parts of at most `size` bytes, cut where a UTF-8 character begins."""
    start = 0
    while len(line) - start > size:
        end = start + size
        while end > start + size - 4 and line[end] & 0xC0 == 0x80:
            end -= 1
        yield line[start:end]
        start = end
    yield line[start:]


def json_items(chunks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """The items of a JSON list, or JSON objects one after another, each with its first line; None for one over `limit` bytes.

    Only brackets and quotes are looked at, so a list of any length streams, and a bad item does not take its neighbours along.
    """
    cutter = _JsonCutter(limit)
    for chunk in chunks:
        yield from cutter.feed(chunk)
    torn = cutter.depth > 0 or cutter.in_string
    if cutter.size:
        yield cutter.flush()
    if cutter.listed and not torn:
        yield cutter.number, b"["  # a list without its end is no JSON, and is counted as such


class _JsonCutter:
    """Where in a JSON text we are: inside a string or not, in a list or not, and how many brackets deep in an item."""

    def __init__(self, limit: int):
        self.limit = limit
        self.number, self.line_ends, self.size = 1, 0, 0  # the item's first line, the line ends in it, its bytes so far
        self.held: list[bytes] = []
        self.depth, self.listed, self.in_string = 0, False, False
        self.skip = -1  # the position in the coming chunk of a character behind a backslash

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        start = 0
        for found in _JSON_MARK.finditer(chunk):
            at, mark = found.start(), found.group()
            if self.in_string:
                if at == self.skip:
                    continue
                if mark == b"\\":
                    self.skip = at + 1
                self.in_string = mark != b'"'
            elif mark == b'"':
                self.in_string = True
            elif mark == b"[" and self._opens_list(chunk[start:at]):
                self.listed, start = True, at + 1
            elif mark in (b"[", b"{"):
                self.depth += 1
            elif self._ends_item(mark):
                self._hold(chunk[start : at + (mark == b"}")])
                start = at + 1
                if self.size:
                    yield self.flush()
        self._hold(chunk[start:])
        self.skip -= len(chunk)

    def flush(self) -> tuple[int, bytes | None]:
        item = self.number, b"".join(self.held) if self.size <= self.limit else None
        self.number, self.line_ends, self.size = self.number + self.line_ends, 0, 0
        self.held.clear()
        return item

    def _opens_list(self, before: bytes) -> bool:
        if self.listed or self.depth or self.size or before.strip(_BLANK):
            return False
        self.number += before.count(b"\n")
        return True

    def _ends_item(self, mark: bytes) -> bool:
        """Whether a closing bracket or a comma ends an item; brackets are counted on the way."""
        if mark == b"," or mark == b"\\":
            return mark == b"," and self.listed and self.depth == 0
        if mark == b"]" and self.listed and self.depth == 0:
            self.listed = False
            return True
        self.depth = max(0, self.depth - 1)
        return mark == b"}" and self.depth == 0 and not self.listed

    def _hold(self, part: bytes) -> None:
        if not self.size:
            bare = part.lstrip(_BLANK)
            self.number += part[: len(part) - len(bare)].count(b"\n")
            part = bare
        self.held.append(part)
        self.size += len(part)
        self.line_ends += part.count(b"\n")
        if self.size > self.limit:
            self.held.clear()
