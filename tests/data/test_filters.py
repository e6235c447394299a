"""Real text of every kind passes, each kind of junk falls for its own reason, and the funnel's sums hold."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from hornbook.data.documents import Document, Intake, read
from hornbook.data.filters import FILTERS
from hornbook.data.funnel import Funnel, curate
from hornbook.errors import UserError

CLEAN = {
    "short story": "Tom had a red ball. He gave it to Ann.\n",
    "chinese": "小明有一只红色的猫，猫喜欢鱼。",
    "chinese poem": "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "sums": "Question: What is 3 + 4?\nAnswer: 3 + 4 = 7.\nQuestion: What is 12 - 5?\nAnswer: 12 - 5 = 7.",
    "digits": "1 2 3 4 5 6 7 8 9 10\n11 12 13 14 15 16 17 18 19 20",
    "dialogue": "\n".join(f"ROMEO.\nWhat is {n}?\nJULIET.\nIt is {n + 1}." for n in range(20)),
    "refrain": "\n".join(f"Verse {n} tells of what the sailor saw on day {n}.\nAnd the sea rolls on.\n" for n in range(9)),
    "hindi": "एक गाँव में एक छोटी लड़की रहती थी। उसका नाम मीरा था।",
    "arabic": "كان يا ما كان في قديم الزمان رجل فقير.",
    "thai": "กาลครั้งหนึ่งนานมาแล้ว มีเด็กหญิงคนหนึ่ง",
    "russian": "Жили-были старик со старухой у самого синего моря.",
    "french": "« Où vas-tu, à cette heure-là ? » demanda-t-elle. L'été, c'est « À LA PLAGE DE LA CITÉ» qu'on va… Voilà !",
    "german": "„Größe ist nicht alles“, sagte der Bär – und fraß Äpfel.",
    "vietnamese": "Ngày xửa ngày xưa, có một cô bé tên là Tấm.",
    "decomposed": "Le café était fermé".replace("é", "e\u0301"),
    "emoji": "We won the game today! 🎉🎉 See you all on Sunday.",
    "code": "def f(x):\n    return {k: v for k, v in x.items() if k != '_' and v[0] >= 3}\n\n\nprint(f({'a': (1, 2)}))\n",
    "table": "| name | age |\n|------|-----|\n| Ann  | 12  |\n| Tom  | 9   |\n",
    "spaced": "Once upon a time there was a cat.\r\n\r\nIt slept.\r\n",
}
RANDOM = random.Random(0)
JUNK = {
    "empty": ["", "   \n\t\n", "ab", ".", "…", "\ufeff", "好"],
    "noise": [
        "Le café était fermé à midi, déjà.".encode().decode("latin-1"),
        "“Don’t,” she said — and left.".encode().decode("cp1252", "replace"),
        "小明有一只红色的猫，猫喜欢鱼。".encode().decode("latin-1"),
        "Привет, как твои дела сегодня?".encode().decode("cp1252", "replace"),
        "Größe und Äpfel für Bären".encode().decode("cp1252"),
        "the \x00\x01 cat \x07 sat on \x1b the mat",
        "A line of \ufffd\ufffd that lost its letters",
        "数据锟斤拷锟斤拷的文件里有很多字",
    ],
    "repeated": [
        "Click here to subscribe now.\n" * 40,
        "An honest start of the page, with a sentence or two of text.\n" + "点击这里订阅我们的频道。\n" * 36,
        "\n".join(f"{'Buy now!':>{9 + n % 3}}" for n in range(30)),
        "".join(f"A page of its own, number {n}.\nAll rights reserved by the owners of the page.\n" for n in range(30)),
    ],
    "symbols": [
        "".join(RANDOM.choice("#$%^&*@!~|<>{}[]+=/\\ ") for _ in range(300)),
        "=-=-=-=-=-=-=-=-=- * * * * -=-=-=-=-=-=-=-=\n" + "~" * 50,
        "★☆★☆★☆★☆ ●●●●● ▲▼▲▼ ※※※",
        "a $$ b %% c ^^ d && e ** f (( g )) h ## !!",
    ],
}


def reasons(texts: list[str]) -> list[str]:
    """For each text alone the reason it is dropped for, or "kept"."""
    found = []
    for text in texts:
        funnel = Funnel()
        try:
            list(curate([Document(text)], funnel))
            found.append("kept")
        except UserError:
            found += list(funnel.dropped)
    return found


@pytest.mark.parametrize("kind", CLEAN)
def test_real_text_of_every_kind_passes(kind: str) -> None:
    assert reasons([CLEAN[kind]]) == ["kept"]


@pytest.mark.parametrize("reason", JUNK)
def test_junk_falls_for_its_reason(reason: str) -> None:
    assert reasons(JUNK[reason]) == [reason] * len(JUNK[reason])


def test_every_filter_is_exercised() -> None:
    assert set(FILTERS) - {"tidy"} == set(JUNK)


def test_tidying_takes_control_characters_and_foreign_line_ends() -> None:
    clean = "It was a long day in the old town by the sea.\n"
    text = "\ufeff" + clean + "".join(f"Line {n} of the tale.\r\n" for n in range(50)) + "A bell\x07 rang.\rThe\tend\x0c"
    funnel = Funnel()
    (document,) = curate([Document(text)], funnel)
    assert document.text == clean + "".join(f"Line {n} of the tale.\n" for n in range(50)) + "A bell rang.\nThe\tend"
    assert funnel.tidied.record() == {"documents": 1, "bytes": len(text.encode()) - len(document.text.encode())}


def test_the_funnel_adds_up_and_is_plain_json(tmp_path: Path) -> None:
    texts = [text for kind in CLEAN.values() for text in (kind, kind)] + [text for kind in JUNK.values() for text in kind]
    RANDOM.shuffle(texts)
    texts = [text for text in texts if "\0" not in text]  # a reader refuses these
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "{}\n")
    funnel = Funnel(Intake())
    kept = list(curate(read(str(tmp_path / "a.jsonl"), funnel.intake), funnel))
    record = json.loads(json.dumps(funnel.record()))
    assert {document.text for document in kept} == {text.replace("\r\n", "\n") for text in CLEAN.values()}
    dropped = record["dropped"]
    expected = {reason: len(set(junk) & set(texts)) for reason, junk in JUNK.items()} | {"duplicate": len(CLEAN)}
    assert {reason: count["documents"] for reason, count in dropped.items()} == expected
    assert record["in"]["documents"] == record["out"]["documents"] + sum(count["documents"] for count in dropped.values())
    removed = sum(count["bytes"] for count in dropped.values()) + record["tidied"]["bytes"]
    assert record["in"]["bytes"] == record["out"]["bytes"] + removed == funnel.intake.bytes
    assert record["in"]["bytes"] == sum(len(text.encode()) for text in texts)
    assert record["out"] == {"documents": len(kept), "bytes": sum(len(document.text.encode()) for document in kept)}
    assert record["rejected"] == {"no text": {"documents": 1, "examples": funnel.intake.examples["no text"]}}
    for count in dropped.values():
        assert 1 <= len(count["examples"]) <= 3 and count["examples"][0].startswith(f"{tmp_path}/a.jsonl:")


def test_conversations_pass_if_they_hold_an_answer() -> None:
    talk = ({"role": "user", "content": "?!"}, {"role": "assistant", "content": "7"})
    silent = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": " "})
    funnel = Funnel()
    assert len(list(curate([Document("", "a", talk), Document("", "b", talk), Document("", "c", silent)], funnel))) == 2
    assert {reason: count.documents for reason, count in funnel.dropped.items()} == {"no answer": 1}
    assert funnel.entered.bytes == len("?!7") * 2 + len("Hello ")


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError) as caught:
        list(curate([Document("", "here:1"), Document("%$ #@ ^& *( )_ +!", "here:2"), Document(" ", "here:3")], Funnel()))
    assert "empty: 2, symbols: 1" in str(caught.value) and "here:1" in str(caught.value) and "Fix:" in str(caught.value)


@pytest.mark.parametrize("name", ["tinyshakespeare", "wikitext-2", "chinese-poetry", "japanese", "tinystories_30k"])
def test_published_corpora_survive_cleaning(data_folder: Path, name: str) -> None:
    funnel = Funnel()
    kept = curate(read(str(data_folder / "corpora" / name), funnel.intake), funnel)
    assert sum(document.size for document in kept) > 0.99 * funnel.entered.bytes - funnel.tidied.bytes
