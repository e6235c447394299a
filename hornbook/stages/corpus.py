"""Any source -> a cleaned corpus on disk: documents to learn from, held-out ones, conversations, questions, and the funnel.

Where there is more text than is wanted, the documents with the smallest digests are taken: a sample that depends on the texts
alone, not on their order. The held-out part is the beginning of that order.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from hornbook.data.documents import Document
from hornbook.data.funnel import Funnel, curate
from hornbook.data.sources import open_corpus
from hornbook.data.town import Town
from hornbook.errors import UserError
from hornbook.files import written_folder
from hornbook.stages.keep import kept
from hornbook.stages.voice import Voice

HELD_OUT_SHARE, HELD_OUT_BYTES = 0.05, 150_000
READ_AT_MOST = 8  # times what is wanted; an endless stream is not read further
CHANCE = {"stories": 0.5}  # by kind, where guessing among what was said has a known rate
QUESTIONS, STORIES, TOWN_HELD_OUT = 200, 200, 200
SAVED = {"train": "train.jsonl", "held_out": "held_out.jsonl", "conversations": "conversations.jsonl"}


def make_corpus(data: str, language: str, seed: int, limit: int, conversations: int, folder: Path, voice: Voice) -> None:
    """Write the corpus of at most about `limit` bytes into `folder`, unless it is there already."""
    inputs = {"data": data, "language": language, "seed": seed, "limit": limit, "conversations": conversations}
    voice.begin("corpus", f"read and clean {data}")
    if kept(folder, inputs):
        voice.end("kept from before")
        return
    funnel = Funnel()
    with written_folder(folder, {"inputs": inputs}) as target:
        if data == "town":
            extra = _town(Town(seed, language), limit, conversations, funnel, target, voice)
        else:
            extra = _found(data, limit, conversations, funnel, target, voice)
        record = funnel.record() | extra
        (target / "funnel.json").write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
    dropped, rejected = sum(row["documents"] for row in record["dropped"].values()), sum(funnel.intake.rejected.values())
    voice.end(
        f"{record['train']['documents']:,} documents, {record['train']['bytes'] / 1e6:.2f} MB; {dropped:,} dropped, "
        f"{rejected:,} unreadable; {record['held_out']['documents']:,} held out"
    )


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
    return _split(target, train, held_out) | {"planted": town.planted(limit)}


def _found(data: str, limit: int, conversations: int, funnel: Funnel, target: Path, voice: Voice) -> dict[str, Any]:
    """The corpus of a named source: a sample by digest, its first part held out."""
    sample: list[tuple[int, int, Document]] = []  # a heap whose top has the largest digest
    talks: list[Document] = []
    wanted, size, unused = int(limit * (1 + HELD_OUT_SHARE)), 0, {"documents": 0, "bytes": 0}
    curated = curate(open_corpus(data, funnel.intake), funnel)
    for number, document in enumerate(_watched(curated, limit * READ_AT_MOST, voice)):
        if document.messages:
            talks.append(document)
            continue
        heapq.heappush(sample, (-_order(document), number, document))
        size += document.size
        while size > wanted and len(sample) > 2:
            left_out = heapq.heappop(sample)[2]
            size -= left_out.size
            unused["documents"] += 1
            unused["bytes"] += left_out.size
        if funnel.intake.bytes > limit * READ_AT_MOST:
            break
    texts = [document for _, _, document in sorted(sample, key=lambda entry: (-entry[0], entry[1]))]
    if not texts:  # nothing but conversations: their words are the text too
        texts = [Document("\n".join(turn["content"] for turn in talk.messages), talk.source) for talk in talks]
    held_out = _first(texts, min(HELD_OUT_BYTES, int(sum(text.size for text in texts) * HELD_OUT_SHARE)))
    train = texts[len(held_out) :]
    if not train:
        raise UserError(
            "there is too little text to learn from and to test with", where=data, why=f"one document of {size} bytes was found",
            fix="give more text: a few hundred kB make a model that is fun",
        )  # fmt: skip
    questions = _questions(talks)
    _lines(target / "questions.jsonl", questions)
    asked = {row["question"] for row in questions}
    learned = [talk for talk in talks if not any(turn["content"] in asked for turn in talk.messages)]
    _save(target / SAVED["conversations"], learned[:conversations])
    return _split(target, train, held_out) | {"unused": unused}


def _questions(talks: list[Document]) -> list[dict[str, Any]]:
    """One in ten of the single questions with an answer, held out for the exact-match score."""
    single = [talk for talk in talks if [turn["role"] for turn in talk.messages] == ["user", "assistant"]]
    chosen = sorted(single, key=_order)[: min(QUESTIONS, len(single) // 10)]
    pairs = [(question["content"], answer["content"]) for question, answer in (talk.messages for talk in chosen)]
    return [{"kind": "questions", "question": question, "answer": answer} for question, answer in pairs]


def _order(document: Document) -> int:
    parts = [turn["content"] for turn in document.messages] or [document.text]
    return int.from_bytes(sha256("\0".join(parts).encode()).digest()[:8], "big")


def _first(documents: list[Document], size: int) -> list[Document]:
    """The first documents up to `size` bytes, at least one."""
    chosen: list[Document] = []
    total = 0
    for document in documents:
        if chosen and total + document.size > size:
            break
        chosen.append(document)
        total += document.size
    return chosen


def _split(target: Path, train: list[Document], held_out: list[Document]) -> dict[str, Any]:
    counts = {}
    for name, documents in (("train", train), ("held_out", held_out)):
        _save(target / SAVED[name], documents)
        counts[name] = {"documents": len(documents), "bytes": sum(document.size for document in documents)}
    return counts


def _watched(documents: Iterable[Document], expected: int, voice: Voice) -> Iterator[Document]:
    done = 0
    for number, document in enumerate(documents):
        done += document.size
        if number % 500 == 0:
            voice.progress(min(done, expected), expected, {"documents": number})
        yield document


def _save(path: Path, documents: Iterable[Document]) -> None:
    _lines(path, ({key: value for key, value in asdict(document).items() if value} for document in documents))


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def saved_documents(corpus: Path, part: str) -> list[Document]:
    """The documents of one part of a corpus: train, held_out or conversations."""
    with (corpus / SAVED[part]).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Document(row.get("text", ""), row.get("source", ""), tuple(row.get("messages", ()))) for row in rows]


def saved_rows(corpus: Path, name: str) -> list[dict[str, Any]]:
    """The rows of `questions` or `story_prompts`; none where the corpus has no such thing."""
    path = corpus / f"{name}.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
