"""The textbook algorithm against examples worked by hand in textbooks."""

from __future__ import annotations

from typing import Literal

import pytest

from hornbook.errors import UserError
from hornbook.text import plain


def test_get_stats_counts_every_neighbouring_pair_and_adds_to_given_counts() -> None:
    assert plain.get_stats([1, 2, 3, 1, 2]) == {(1, 2): 2, (2, 3): 1, (3, 1): 1}
    counts = {(1, 2): 5}
    assert plain.get_stats([1, 2, 3], counts) is counts and counts == {(1, 2): 6, (2, 3): 1}


def test_merge_goes_from_left_to_right() -> None:
    assert plain.merge([1, 2, 3, 1, 2], (1, 2), 4) == [4, 3, 4]
    assert plain.merge([5, 5, 5], (5, 5), 9) == [9, 5]
    assert plain.merge([], (1, 2), 4) == []


def test_the_example_of_the_wikipedia_article() -> None:
    """aaabdaaabac -> ZabdZabac -> ZYdZYac -> XdXac, with Z=aa, Y=ab, X=ZY: the tie of Za and ab goes to ab, the lower."""
    merges, vocab = plain.train("aaabdaaabac", 256 + 3, ties="lowest")
    assert [vocab[i] for i in (256, 257, 258)] == [b"aa", b"ab", b"aaab"]
    assert plain.encode("aaabdaaabac", merges) == [258, ord("d"), 258, ord("a"), ord("c")]
    assert plain.decode([258, ord("d"), 258, ord("a"), ord("c")], vocab) == "aaabdaaabac"


def test_the_example_of_minbpe() -> None:
    """The same text with Python's `max`: the tie of Za and ab goes to Za, which stands first."""
    merges, vocab = plain.train("aaabdaaabac", 256 + 3)
    assert merges == {(97, 97): 256, (256, 97): 257, (257, 98): 258}
    assert plain.encode("aaabdaaabac", merges) == [258, 100, 258, 97, 99]


def test_ties_go_to_the_pair_seen_first_or_to_the_lowest_ids() -> None:
    # In "zyxabc" every pair is seen once: z y comes first, a b is lowest.
    first, _ = plain.train("zyxabc", 257)
    lowest, _ = plain.train("zyxabc", 257, ties="lowest")
    assert list(first) == [(ord("z"), ord("y"))]
    assert list(lowest) == [(ord("a"), ord("b"))]
    with pytest.raises(UserError, match="did you mean 'lowest'"):
        plain.train("ab", 257, ties="lowst")  # type: ignore[arg-type]


def test_the_second_half_of_a_pair_breaks_the_tie_when_the_first_is_equal() -> None:
    lowest, _ = plain.train("ac.ab.ad", 257, ties="lowest")
    assert list(lowest) == [(ord("."), ord("a"))]  # twice, so no tie
    lowest, _ = plain.train("acab", 257, ties="lowest")
    assert list(lowest) == [(ord("a"), ord("b"))]


@pytest.mark.parametrize("ties", ["first", "lowest"])
def test_text_comes_back_and_a_text_without_pairs_ends_the_training(ties: Literal["first", "lowest"]) -> None:
    text = "The hornbook 角本 🙂 the hornbook the horn"
    merges, vocab = plain.train(text, 300, ties=ties)
    assert plain.decode(plain.encode(text, merges), vocab) == text
    assert plain.decode(plain.encode("never seen: ü", merges), vocab) == "never seen: ü"
    merges, vocab = plain.train("abc", 1000, ties=ties)
    assert len(merges) == 2 and vocab[257] == b"abc"


def test_verbose_prints_one_line_per_merge(capsys: pytest.CaptureFixture[str]) -> None:
    plain.train("aaabdaaabac", 258, verbose=True)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["merge 1/2", "merge 2/2"]


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size=255"):
        plain.train("abc", 255)
