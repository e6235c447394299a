"""Any source -> a cleaned corpus on disk: documents to learn from, held-out ones, conversations, questions, and the funnel.

Where there is more text than is wanted, the documents with the smallest digests are taken: a sample that depends on the texts
alone, not on their order. The held-out part is the beginning of that order. Texts lie on the disk, twice while the sample is
sorted; in memory is a place and a digest of each.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import accumulate, chain, islice, takewhile
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from hornbook.data.documents import Document, shown
from hornbook.data.funnel import Count, Funnel, curate
from hornbook.data.sources import local_files, open_corpus
from hornbook.data.town import Town
from hornbook.errors import UserError
from hornbook.files import MANIFEST, written_folder
from hornbook.files import sha256 as hashed
from hornbook.stages.keep import kept, sources
from hornbook.stages.settings import HELD_OUT_BYTES
from hornbook.stages.voice import Voice

HELD_OUT_SHARE = 0.05
TAIL = 1 << 16  # bytes that are read first of the end of a file
READ_AT_MOST = 8  # times what is wanted; an endless stream is not read further
CHANCE = {"stories": 0.5}  # by kind, where guessing among what was said has a known rate
QUESTIONS, STORIES, TOWN_HELD_OUT = 200, 200, 200
SAVED = {"train": "train.jsonl", "held_out": "held_out.jsonl", "conversations": "conversations.jsonl"}


def make_corpus(
    data: str, language: str, seed: int, limit: int, conversations: int, folder: Path, voice: Voice,
    held_out: int = HELD_OUT_BYTES,
) -> None:  # fmt: skip
    """Write the corpus of at most about `limit` bytes, `held_out` of them held out, into `folder`, unless it is there already.

    One whose local files have changed since is refused; where they are gone, the copy in `folder` is what there is.
    """
    inputs = {
        "data": data, "language": language, "seed": seed, "corpus_bytes": limit, "conversations": conversations,
        "held_out_bytes": held_out,
    }  # fmt: skip
    voice.begin("corpus", f"read and clean {data}")
    if kept(folder, inputs):
        _refuse_changed(data, folder, voice)
        voice.end("kept from before")
        return
    funnel, about = Funnel(), dict[str, Any](inputs=inputs)
    with written_folder(folder, about) as target:
        if data == "town":
            extra = _town(Town(seed, language), limit, conversations, funnel, target, voice)
        else:
            extra = _found(data, limit, held_out, conversations, funnel, target, voice)
        record = funnel.record() | extra
        (target / "funnel.json").write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
        paths = list(local_files(data))
        about["read"] = {shown(path): _stamp(path) | {"sha256": hashed(Path(path))} for path in paths[: funnel.intake.files]}
        about["unread"] = len(paths) - len(about["read"])
    dropped, rejected = sum(row["documents"] for row in record["dropped"].values()), sum(funnel.intake.rejected.values())
    voice.end(
        f"{record['train']['documents']:,} documents, {record['train']['bytes'] / 1e6:.2f} MB; {dropped:,} dropped, "
        f"{rejected:,} unreadable; {record['held_out']['documents']:,} held out"
    )


def _refuse_changed(data: str, folder: Path, voice: Voice) -> None:
    """Raise `UserError` where a file that the corpus was read from is another, one is missing, or one has come between."""
    about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["about"]
    read = about.get("read")
    if not read:
        return
    run = next((place.parent for place in (folder, folder.parent) if place.name == "corpus"), folder).resolve()
    try:  # what the run itself has written, where it lies in the folder that it reads, is no news
        paths = (path for path in local_files(data) if shown(path) in read or run not in Path(path).resolve().parents)
        there = {shown(path): path for path in paths}
    except UserError:  # nothing has that name
        there = {}
    if not there:
        return voice.say(f"{data} is gone: the run keeps its copy of the text")
    for name in dict.fromkeys([*read, *(list(there)[: len(read)] if about["unread"] else there)]):
        if why := _change(read.get(name), there.get(name)):
            raise UserError(
                "the text that the run was begun with has changed", where=name, why=why,
                fix="choose another --out, or delete the run's folder to begin anew",
            )  # fmt: skip


def _change(was: dict[str, Any] | None, path: str | None) -> str:
    """What happened to a file, in words; nothing where it is the same, or a copy of it."""
    if was is None or path is None:
        return "the file is new" if path else "the file is gone, and others of the source are there"
    now = _stamp(path)
    if now == {"bytes": was["bytes"], "mtime_ns": was["mtime_ns"]}:
        return ""
    if now["bytes"] != was["bytes"]:
        return f"it had {was['bytes']:,} bytes and has {now['bytes']:,} now"
    return "" if hashed(Path(path)) == was["sha256"] else f"it still has {now['bytes']:,} bytes, but others"


def _stamp(path: str) -> dict[str, int]:
    status = os.stat(path)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _town(town: Town, limit: int, conversations: int, funnel: Funnel, target: Path, voice: Voice) -> dict[str, Any]:
    train = list(_watched(curate(town.documents(limit), funnel), limit, voice))
    held_out = town.held_out_documents(TOWN_HELD_OUT)
    _save(target / SAVED["conversations"], town.conversations(conversations))
    questions = [
        {"kind": asked.kind, "question": asked.prompt, "answer": asked.answer, "chance": CHANCE.get(asked.kind)}
        for asked in town.questions(QUESTIONS)
    ]
    _lines(target / "questions.jsonl", questions)
    _lines(target / "story_prompts.jsonl", ({"prompt": prompt} for prompt in town.story_prompts(STORIES)))
    return _split(target, chain(held_out, train), len(held_out)) | {"planted": town.planted(limit)}


def _found(
    data: str, limit: int, held_out_bytes: int, conversations: int, funnel: Funnel, target: Path, voice: Voice
) -> dict[str, Any]:
    """The corpus of a named source: a sample by digest, its first part held out."""
    talks: list[Document] = []
    with TemporaryFile(dir=target) as found:
        places, unused = _sampled(data, limit, funnel, found, talks, voice)
        # Nothing but conversations: their words are the text too.
        said = [] if places else [Document("\n".join(turn["content"] for turn in talk.messages), talk.source) for talk in talks]
        sizes = [size for _, size in places] or [text.size for text in said]
        held_out = _first(sizes, min(held_out_bytes, int(sum(sizes) * HELD_OUT_SHARE)))
        if held_out >= len(sizes):
            raise UserError(
                "there is too little text to learn from and to test with", where=data,
                why=f"one document of {sum(sizes)} bytes was found",
                fix="give more text: a few hundred kB make a model that is fun",
            )  # fmt: skip
        counts = _split(target, chain(said, _read_again(found, places)), held_out)
    questions = _questions(talks)
    _lines(target / "questions.jsonl", questions)
    asked = {row["question"] for row in questions}
    learned = [talk for talk in talks if not any(turn["content"] in asked for turn in talk.messages)]
    _save(target / SAVED["conversations"], learned[:conversations])
    return counts | {"unused": unused}


def _sampled(
    data: str, limit: int, funnel: Funnel, found: IO[bytes], talks: list[Document], voice: Voice
) -> tuple[list[tuple[int, int]], dict[str, int]]:  # fmt: skip
    """Write the texts to `found`; where those of the sample begin and how large they are, by digest, and what is left out.

    Conversations go to `talks`.
    """
    sample: list[tuple[int, int, int, int]] = []  # a heap whose top has the largest digest
    wanted, size, unused = int(limit * (1 + HELD_OUT_SHARE)), 0, {"documents": 0, "bytes": 0}
    curated = curate(open_corpus(data, funnel.intake), funnel)
    for number, document in enumerate(_watched(curated, limit * READ_AT_MOST, voice)):
        if document.messages:
            talks.append(document)
            continue
        heapq.heappush(sample, (-_order(document), number, found.tell(), document.size))
        found.write(_line(_row(document)))
        size += document.size
        while size > wanted and len(sample) > 2:
            left_out = heapq.heappop(sample)[-1]
            size -= left_out
            unused["documents"] += 1
            unused["bytes"] += left_out
        if funnel.intake.bytes > limit * READ_AT_MOST:
            break
    return [(place, size) for _, _, place, size in sorted(sample, key=lambda entry: (-entry[0], entry[1]))], unused


def _read_again(found: IO[bytes], places: list[tuple[int, int]]) -> Iterator[Document]:
    for place, _ in places:
        found.seek(place)
        yield _document(found.readline())


def _questions(talks: list[Document]) -> list[dict[str, Any]]:
    """One in ten of the single questions with an answer, held out for the exact-match score."""
    single = [talk for talk in talks if [turn["role"] for turn in talk.messages] == ["user", "assistant"]]
    chosen = sorted(single, key=_order)[: min(QUESTIONS, len(single) // 10)]
    pairs = [(question["content"], answer["content"]) for question, answer in (talk.messages for talk in chosen)]
    return [{"kind": "questions", "question": question, "answer": answer} for question, answer in pairs]


def _order(document: Document) -> int:
    parts = [turn["content"] for turn in document.messages] or [document.text]
    return int.from_bytes(sha256("\0".join(parts).encode()).digest()[:8], "big")


def _first(sizes: list[int], limit: int) -> int:
    """How many of the first documents are up to `limit` bytes, at least one."""
    return max(1, sum(1 for _ in takewhile(lambda total: total <= limit, accumulate(sizes))))


def _split(target: Path, documents: Iterator[Document], held_out: int) -> dict[str, Any]:
    """Write the first `held_out` documents as that, the others to learn from."""
    parts = {"held_out": islice(documents, held_out), "train": documents}
    return {name: _save(target / SAVED[name], part).record() for name, part in parts.items()}


def _watched(documents: Iterable[Document], expected: int, voice: Voice) -> Iterator[Document]:
    done = 0
    for number, document in enumerate(documents):
        done += document.size
        if number % 500 == 0:
            voice.progress(min(done, expected), expected, {"documents": number})
        yield document


def _save(path: Path, documents: Iterable[Document]) -> Count:
    count = Count()
    with path.open("wb") as file:
        for document in documents:
            count.add(document)
            file.write(_line(_row(document)))
    return count


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("wb") as file:
        file.writelines(map(_line, rows))


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")


def _row(document: Document) -> dict[str, Any]:
    return {key: value for key, value in vars(document).items() if value}


def _document(line: bytes) -> Document:
    row = json.loads(line)
    return Document(row.get("text", ""), row.get("source", ""), tuple(row.get("messages", ())))


def make_mixture(
    weights: Mapping[str, float], language: str, seed: int, limit: int, conversations: int, folder: Path, voice: Voice,
    held_out: int = HELD_OUT_BYTES,
) -> None:  # fmt: skip
    """A corpus of each source in `folder`, which has its part of the limit and of the conversations, by weight."""
    if (folder / MANIFEST).exists():
        kept(folder, {"mixture": dict(weights)})  # which refuses it: a corpus of one source is no part of a mixture
    total = sum(weights.values())
    for number, (data, weight) in enumerate(weights.items()):
        part = weight / total
        make_corpus(data, language, seed, int(limit * part), round(conversations * part), folder / str(number), voice, held_out)


def train_size(corpus: Path) -> Count:
    """How many documents there are to learn from, and of how many bytes."""
    found = [json.loads((source / "funnel.json").read_text(encoding="utf-8"))["train"] for source in sources(corpus)]
    return Count(sum(each["documents"] for each in found), sum(each["bytes"] for each in found))


def each_document(corpus: Path, part: str) -> Iterator[Document]:
    """The documents of one part of a corpus, one after the other and source after source: train, held_out or conversations."""
    for source in sources(corpus):
        with (source / SAVED[part]).open("rb") as file:
            yield from map(_document, file)


def saved_documents(corpus: Path, part: str) -> list[Document]:
    """`each_document` of a part that fits into memory."""
    return list(each_document(corpus, part))


def last_documents(corpus: Path, part: str, count: int) -> list[Document]:
    """The last `count` of `each_document`, read from the ends of the files."""
    found: list[Document] = []
    for source in reversed(sources(corpus)):
        if wanted := count - len(found):
            found = [*map(_document, _last_lines(source / SAVED[part], wanted)), *found]
    return found


def _last_lines(path: Path, count: int) -> list[bytes]:
    with path.open("rb") as file:
        begin, tail = file.seek(0, os.SEEK_END), b""
        while begin and tail.count(b"\n") <= count:
            size = min(begin, max(TAIL, len(tail)))
            begin = file.seek(begin - size)
            tail = file.read(size) + tail
    return tail.splitlines()[-count:]


def saved_rows(corpus: Path, name: str) -> list[dict[str, Any]]:
    """The rows of `questions` or `story_prompts`; none where the corpus has no such thing."""
    paths = [source / f"{name}.jsonl" for source in sources(corpus)]
    return [json.loads(line) for path in paths if path.exists() for line in path.read_bytes().splitlines()]
