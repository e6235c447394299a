"""Comparison: directions on texts that the project ships, counts against a slow count, YAML against PyYAML."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from benchmarks.tokenizer_lab import gpt2
from hornbook.errors import UserError
from hornbook.stages.laboratory import HOME, home, home_texts
from hornbook.text import lab
from hornbook.text.lab_samples import MANUALS, domains, halves, records, sample, yaml
from hornbook.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokens(data_folder: Path) -> dict[str, dict[str, int]]:
    """Tokens by text and tokenizer."""
    found = lab.compare({"gpt2": gpt2(data_folder), **{name: home(name) for name in ("home-zh", "home-en")}}, domains())
    return {title: {name: m["tokens"] for name, m in row.items()} for title, row in found["texts"].items()}


def test_a_home_trained_chinese_tokenizer_beats_gpt2_on_chinese_and_loses_on_english(tokens: dict[str, dict[str, int]]) -> None:
    chinese, english = tokens["Chinese"], tokens["English"]
    assert 1.4 * chinese["home-zh"] < chinese["gpt2"]
    assert english["home-zh"] > 4 * english["gpt2"] and english["home-zh"] > 2 * english["home-en"]
    assert chinese["home-en"] > 2 * chinese["home-zh"]


def test_backwards_indentation_and_notation_cost_what_the_page_says(tokens: dict[str, dict[str, int]]) -> None:
    ours = {title: row["gpt2"] for title, row in tokens.items()}
    assert ours["English backwards"] > 1.8 * ours["English"]
    assert ours["Python"] > 1.8 * ours["Python, no indentation"]
    assert ours["JSON, minified"] < ours["YAML"] < ours["JSON, pretty"]


def test_what_was_learned_from_is_not_measured_on() -> None:
    for name, languages in HOME.items():
        learned = "\n".join(home_texts(name))
        for language in languages:
            first, second = halves(language)
            assert first in learned and first + second == sample(language)
            assert not any(section in learned for section in second.split("\n\n"))


def test_the_manuals_are_as_long_as_promised_and_come_back_from_every_tokenizer() -> None:
    for language in MANUALS:
        assert 2000 < len(sample(language).encode()) < 4200
    for text in domains().values():
        for tokenizer in (home("home-zh"), home("home-en")):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_data_in_every_notation() -> None:
    theirs = pytest.importorskip("yaml")
    found = domains()
    assert theirs.safe_load(found["YAML"]) == records()
    assert [json.loads(found[f"JSON, {name}"]) for name in ("minified", "one line", "pretty")] == [records()] * 3
    nested = [{"a": [1, 2], "b": {"c": [{"d": 1.5, "e": "two words"}, {"d": 2}]}}, 3, None, "x"]
    assert theirs.safe_load(yaml(nested)) == nested


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("Two words.", 2),
        ("论文的结构", 5),
        ("研究の方法", 5),
        ("用 A4 纸", 3),
        ("don't", 2),
        ("naïve café", 2),
        ("3.14", 2),
    ],
)
def test_words_and_characters_of_unspaced_scripts(text: str, words: int) -> None:
    assert lab.measure(home("home-en"), text).words == words


def test_measures_against_a_slow_count() -> None:
    tokenizer, text = home("home-zh"), halves("zh")[1]
    found = lab.measure(tokenizer, text)
    letters = [c for c in text if unicodedata.name(c, "").startswith("CJK UNIFIED")]
    spaced = "".join(" " if c in letters or not (c.isalnum() or c == "_") else c for c in text).split()
    assert found.words == len(letters) + len(spaced)
    record = found.record()
    assert record["bytes_per_token"] * found.tokens == pytest.approx(len(text.encode()))
    assert record["fertility"] * found.words == pytest.approx(len(tokenizer.encode(text)))


def test_kinds_against_their_definitions() -> None:
    learn, held = ["a bad cab", "abba"], ["a bag", "cab!"]
    found = {kind.name: kind for kind in lab.kinds(learn, held, rows=(256, 260))}
    assert (found["bytes"].vocab, found["bytes"].tokens, found["bytes"].unknown) == (256, 9, 0)
    assert (found["characters"].vocab, found["characters"].tokens) == (len(set("a bad cabba")) + 1, 9)
    assert found["characters"].unknown == pytest.approx(2 / 9)  # g and !
    assert (found["words"].vocab, found["words"].tokens, found["words"].unknown) == (6, 5, pytest.approx(2 / 5))  # bag and !
    trained = Tokenizer.train(learn, vocab=260, specials=())
    assert found["BPE"].tokens == sum(len(trained.encode(text)) for text in held)


def test_only_the_vocabularies_of_characters_and_words_have_unknowns() -> None:
    unknown = {kind.name: kind.unknown for kind in lab.kinds(home_texts("home-en"), [halves("en")[1]], rows=(400,))}
    assert (
        unknown["bytes"] == unknown["BPE"] == 0 < unknown["characters"] < 0.01 < 0.1 < unknown["words"] < unknown["frequent words"]
    )


def test_a_special_is_text_in_a_text() -> None:
    probe = lab.compare({"home": home("home-en")}, {})["probes"]["<|endoftext|>"]["home"]
    assert "".join(probe) == "<|endoftext|>" and len(probe) > 1


def test_what_cannot_be_compared_says_so() -> None:
    with pytest.raises(UserError, match="did you mean 'en'"):
        sample("eng")
    with pytest.raises(UserError, match="too little text"):
        lab.kinds(["one"], [""])
