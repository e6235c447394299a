"""The corpus stage: what is sampled, what is held out, and that every record is accounted for."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from hornbook.data.documents import Document
from hornbook.data.town import Town
from hornbook.errors import UserError
from hornbook.stages import corpus
from hornbook.stages.corpus import last_documents, make_corpus, make_mixture, saved_documents, saved_rows
from hornbook.stages.keep import lineage
from hornbook.stages.voice import Silent
from tests.stages.test_learn import Heard


def texts(count: int) -> list[str]:
    draw = random.Random(4)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(3, 8))) for _ in range(90)]
    return [" ".join(draw.choices(words, k=40)) for _ in range(count)]


def written(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def made(data: str, folder: Path, limit: int = 10**6, conversations: int = 100) -> dict[str, list[Document]]:
    make_corpus(data, "en", 0, limit, conversations, folder, Silent())
    return {part: saved_documents(folder, part) for part in ("train", "held_out", "conversations")}


def test_the_sample_does_not_depend_on_the_order_of_the_records(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": text} for text in texts(200)]
    forward = made(written(tmp_path / "a.jsonl", rows), tmp_path / "a", limit=12_000)
    backward = made(written(tmp_path / "b.jsonl", rows[::-1]), tmp_path / "b", limit=12_000)
    for part in ("train", "held_out"):
        assert [one.text for one in forward[part]] == [one.text for one in backward[part]]
    size = sum(one.size for one in [*forward["train"], *forward["held_out"]])
    assert 9_000 < size <= 12_000 * 1.05


def test_what_is_held_out_is_not_learned_and_nothing_is_lost(tmp_path: Path) -> None:
    all_texts = texts(200)
    parts = made(written(tmp_path / "a.jsonl", [{"text": text} for text in all_texts]), tmp_path / "out")
    train, held_out = ({one.text for one in parts[name]} for name in ("train", "held_out"))
    assert train and held_out and not train & held_out
    assert train | held_out == set(all_texts)


def test_as_much_is_held_out_as_is_asked_for(tmp_path: Path) -> None:
    """Up to a twentieth of the text, and never less than one document."""
    data, sizes = written(tmp_path / "a.jsonl", [{"text": text} for text in texts(400)]), []
    for limit in (1, 2_000, 10**9):
        make_corpus(data, "en", 0, 10**6, 0, tmp_path / str(limit), Silent(), limit)
        sizes.append(sum(one.size for one in saved_documents(tmp_path / str(limit), "held_out")))
    whole = sum(map(len, texts(400)))
    assert 0 < sizes[0] < 400 and 1_600 < sizes[1] <= 2_000 and 0.045 * whole < sizes[2] <= 0.05 * whole


def test_the_last_documents_are_read_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one source and over the sources of a mixture, whatever line ends the texts hold, and without reading the others."""
    found = {name: [f"{name} {text}\r\u2028\n\x85" for text in texts(60 + len(name))] for name in ("a", "bc")}
    paths = {written(tmp_path / f"{name}.jsonl", [{"text": text} for text in rows]): 1.0 for name, rows in found.items()}
    make_corpus([*paths][0], "en", 0, 10**6, 0, tmp_path / "one", Silent())
    make_mixture(paths, "en", 0, 10**6, 0, tmp_path / "two", Silent())
    for folder in (tmp_path / "one", tmp_path / "two"):
        whole = saved_documents(folder, "train")
        for tail in (1, 700, corpus.TAIL):
            monkeypatch.setattr(corpus, "TAIL", tail)
            for count in (1, 2, 57, 70, len(whole), len(whole) + 9):
                assert last_documents(folder, "train", count) == whole[-count:]
    file = tmp_path / "two" / "0" / "train.jsonl"
    file.write_bytes(b"x" * file.stat().st_size)
    assert last_documents(tmp_path / "two", "train", 20) == whole[-20:]


def test_the_funnel_adds_up(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": text} for text in [*texts(150), *texts(50)]]  # fifty come twice
    made(written(tmp_path / "a.jsonl", rows), tmp_path / "out", limit=20_000)
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["dropped"]["duplicate"]["documents"] == 50
    kept = funnel["train"]["documents"] + funnel["held_out"]["documents"] + funnel["unused"]["documents"]
    assert kept == funnel["out"]["documents"] == funnel["in"]["documents"] - 50
    assert funnel["train"]["bytes"] + funnel["held_out"]["bytes"] + funnel["unused"]["bytes"] == funnel["out"]["bytes"]


def test_one_question_in_ten_is_held_out(tmp_path: Path) -> None:
    """From conversations alone their words are the text, and the questions that are asked later are not among those learned."""
    rows: list[dict[str, object]] = [{"question": text[:60], "answer": text[60:120]} for text in texts(100)]
    parts = made(written(tmp_path / "a.jsonl", rows), tmp_path / "out")
    questions = saved_rows(tmp_path / "out", "questions")
    asked = {row["question"] for row in questions}
    learned = {talk.messages[0]["content"] for talk in parts["conversations"]}
    assert len(asked) == 10 and len(learned) == 90 and not asked & learned
    assert {(row["question"], row["answer"]) for row in questions} <= {(row["question"], row["answer"]) for row in rows}


def test_a_corpus_of_other_settings_is_not_overwritten(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", [{"text": text} for text in texts(50)])
    made(data, tmp_path / "out")
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    with pytest.raises(UserError, match="corpus_bytes was 1000000 and is now 5000"):
        made(data, tmp_path / "out", limit=5_000)
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize("mixture", [False, True])
def test_a_run_whose_text_has_changed_is_refused(mixture: bool, tmp_path: Path) -> None:
    """As many bytes, too; nothing is written, a copy of the old file is the old file, and one that is gone stops nobody."""
    path, voice = tmp_path / "prose.txt", Heard()
    path.write_text("\n\n".join(texts(60)))

    def again() -> None:
        if mixture:
            return make_mixture({"town": 1, str(path): 1}, "en", 0, 10**5, 9, tmp_path / "out", voice)
        make_corpus(str(path), "en", 0, 10**5, 9, tmp_path / "out", voice)

    again()
    before, old = lineage(tmp_path / "out"), path.read_bytes()
    for new, why in ((old.replace(b"a", b"b"), "but others"), (old + b"\n", f"and has {len(old) + 1:,} now")):
        path.write_bytes(new)
        with pytest.raises(UserError, match=why) as error:
            again()
        assert error.value.where == str(path)
    path.write_bytes(old)
    again()
    path.unlink()
    assert not voice.lines
    again()
    assert voice.lines == [f"{path} is gone: the run keeps its copy of the text"] and lineage(tmp_path / "out") == before


def test_a_file_more_or_less_is_another_text(tmp_path: Path) -> None:
    for name in "ad":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(60)) + name)
    for limit, refused in ((10**6, "0be"), (1_000, "0")):  # of the second, the first file alone is read
        if limit == 1_000:
            (tmp_path / "a.txt").write_text("\n\n".join(texts(60)[:50]))
        folder = tmp_path / f"out-{limit}"
        made(str(tmp_path / "*.txt"), folder, limit=limit)
        for name in "0be":
            (tmp_path / f"{name}.txt").write_text("more")
            if name in refused:
                with pytest.raises(UserError, match="the file is new") as error:
                    made(str(tmp_path / "*.txt"), folder, limit=limit)
                assert error.value.where == str(tmp_path / f"{name}.txt")
            (tmp_path / f"{name}.txt").unlink()
            made(str(tmp_path / "*.txt"), folder, limit=limit)
    (tmp_path / "a.txt").unlink()
    for limit in (10**6, 1_000):
        with pytest.raises(UserError, match="the file is gone"):
            made(str(tmp_path / "*.txt"), tmp_path / f"out-{limit}", limit=limit)


def test_a_run_may_lie_in_the_folder_that_it_reads(tmp_path: Path) -> None:
    for name in "az":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(60)) + name)
    for limit in (10**6, 1_000):
        corpus = tmp_path / f"0-{limit}" / "corpus"  # before what is read, by its name
        for _ in range(2):
            made(str(tmp_path), corpus, limit=limit)
        (tmp_path / "0.txt").write_text("more")
        with pytest.raises(UserError, match="the file is new") as error:
            made(str(tmp_path), corpus, limit=limit)
        assert error.value.where == str(tmp_path / "0.txt")
        (tmp_path / "0.txt").unlink()
        shutil.rmtree(corpus.parent)


def test_the_town_is_its_own_corpus_with_questions_and_stories(tmp_path: Path) -> None:
    for language in ("en", "zh"):
        make_corpus("town", language, 0, 40_000, 30, tmp_path / language, Silent())
        held_out = {one.text for one in saved_documents(tmp_path / language, "held_out")}
        assert held_out and not held_out & {one.text for one in saved_documents(tmp_path / language, "train")}
        assert len(saved_documents(tmp_path / language, "conversations")) == 30
        kinds = {row["kind"] for row in saved_rows(tmp_path / language, "questions")}
        assert {"facts", "sums", "stories"} <= kinds and saved_rows(tmp_path / language, "story_prompts")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_cleaning_the_town_drops_exactly_what_was_planted(language: str, tmp_path: Path) -> None:
    make_corpus("town", language, 3, 400_000, 50, tmp_path / "town", Silent())
    funnel = json.loads((tmp_path / "town" / "funnel.json").read_text(encoding="utf-8"))
    dropped = {reason: row["documents"] for reason, row in funnel["dropped"].items()}
    assert dropped == {reason: count for reason, count in funnel["planted"].items() if count}
    assert sum(dropped.values()) > 30


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_held_out_sentence_is_in_the_written_corpus(language: str, tmp_path: Path) -> None:
    town = Town(0, language)
    make_corpus("town", language, 0, 600_000, 1500, tmp_path / "town", Silent())
    learned = "".join((tmp_path / "town" / name).read_text(encoding="utf-8") for name in ("train.jsonl", "conversations.jsonl"))
    asked = [row for row in saved_rows(tmp_path / "town", "questions") if row["kind"] != "stories"]
    assert len(asked) > 300 and all(town.is_held_out(row["question"]) for row in asked)
    assert [row["question"] for row in asked if json.dumps(row["question"], ensure_ascii=False)[1:-1] in learned] == []
