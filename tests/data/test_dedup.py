"""A text counts once, however it is spaced or composed; memory grows with the number of documents alone."""

from __future__ import annotations

import itertools
import random
import tracemalloc
import unicodedata

from hornbook.data.dedup import FirstSeen, digest
from hornbook.data.documents import Document
from hornbook.data.funnel import Funnel, curate


def test_white_space_and_composition_do_not_make_a_text_new() -> None:
    text = "Le café de la gare,\nà midi.  한국어 뉴스 東京"
    same = [text.replace("\n", "\r\n"), f"\u3000{text}\n\n", text.replace(" ", "\t  "), unicodedata.normalize("NFD", text)]
    others = [text.lower(), text + ".", text.replace(" ", ""), unicodedata.normalize("NFKC", text + "ﬁ"), text + "ﬁ"]
    assert {digest(one) for one in same} == {digest(text)} and len(digest(text)) == 16
    assert len({digest(one) for one in [text, *others]}) == 1 + len(others)


def test_the_first_of_each_text_stays_in_order() -> None:
    draw = random.Random(1)
    texts = [f"Story number {draw.randrange(200)} of the town." for _ in range(2000)]
    funnel = Funnel()
    kept = list(curate((Document(text, f"s:{n}") for n, text in enumerate(texts)), funnel))
    slow = [(text, f"s:{n}") for n, text in enumerate(texts) if text not in texts[:n]]
    assert [(document.text, document.source) for document in kept] == slow
    assert funnel.dropped["duplicate"].documents == 2000 - len(slow)
    assert list(funnel.dropped) == ["duplicate"]


def test_memory_is_bounded_by_the_number_of_documents() -> None:
    seen, count = FirstSeen(), 500
    tracemalloc.start()
    try:
        for number in range(count):
            assert seen(Document(f"{number} " + "word " * 1000))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 200 * count  # of about 5,000 bytes each that passed


def test_the_stream_is_lazy() -> None:
    endless = (Document(f"The endless story, part {number}.") for number in itertools.count())
    assert len(list(itertools.islice(curate(endless, Funnel()), 50))) == 50
