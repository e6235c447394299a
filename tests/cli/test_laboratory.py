"""`hornbook tokenizer compare|inspect|vocab|glitch`: tables, JSON, pages as a browser shows them, and what they refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hornbook.text.lab import BPE_ROWS, PROBES
from hornbook.text.lab_samples import domains
from hornbook.text.tokenizer import Tokenizer

Command = Callable[..., Any]
Refused = Callable[..., str]
TEXT = "论文的 résumé 👩\u200d🎓\t<b>&amp; 12345"


def test_compare_side_by_side(here: Path, command: Command) -> None:
    outcome = command("tokenizer", "compare", "home-zh", "home-en", "--kinds", "home-en", "--json")
    found = json.loads(outcome.out)
    assert list(found["texts"]) == list(domains()) and list(found["probes"]) == list(PROBES)
    for row in found["texts"].values():
        assert list(row) == ["home-zh", "home-en"]
        assert all(m["bytes_per_token"] == m["bytes"] / m["tokens"] for m in row.values())
    assert [kind["name"] for kind in found["kinds"]] == ["bytes", "characters", "words", *["BPE"] * len(BPE_ROWS)]
    shown = command("tokenizer", "compare", "home-zh", "home-en").out
    chinese = found["texts"]["Chinese"]
    assert f"Chinese {chinese['home-zh']['tokens']:,} {chinese['home-en']['tokens']:,}" in " ".join(shown.split())
    assert "bytes per token" in shown and "fertility" in shown and "论文的│" in shown


def test_compare_on_a_file_and_on_a_corpus(here: Path, command: Command) -> None:
    found = json.loads(command("tokenizer", "compare", "home-en", "--text", "prose.txt", "--json").out)
    assert list(found["texts"]) == ["prose.txt"]
    assert found["texts"]["prose.txt"]["home-en"]["bytes"] == (here / "prose.txt").stat().st_size
    shown = command("tokenizer", "compare", "--kinds", "prose.txt", "--corpus-bytes", 20_000).out
    assert "characters" in shown and "prose.txt: learned from" in shown


def test_inspect_from_text_to_bytes(command: Command) -> None:
    found = json.loads(command("tokenizer", "inspect", "home-zh", "--text", TEXT, "--json").out)
    assert bytes.fromhex("".join(token["bytes"] for token in found["tokens"])).decode() == TEXT
    assert found["size"] == {"characters": len(TEXT), "bytes": len(TEXT.encode()), "tokens": len(found["tokens"])}
    shown = command("tokenizer", "inspect", "home-zh", "--text", TEXT).out
    assert "U+1F469" in shown and "GRADUATION CAP" in shown and "论文的" in shown


def test_vocab_and_glitch_by_a_corpus(here: Path, command: Command) -> None:
    survey = json.loads(command("tokenizer", "vocab", "home-en", "--json").out)
    assert sum(survey["scripts"].values()) + len(survey["specials"]) == survey["rows"]
    assert f"{survey['rows']:,} rows" in command("tokenizer", "vocab", "home-en").out
    found = json.loads(command("tokenizer", "glitch", "home-en", "--data", "prose.txt", "--json").out)
    assert found["suspected"] == found["unused"] == len(found["suspects"]) > 100
    assert found["out_of_reach"] == len(survey["unreachable"])
    assert "what the corpus never produced" in command("tokenizer", "glitch", "home-en", "--data", "prose.txt").out.lower()


@pytest.mark.parametrize("name", ["llama2", "t5/t5_tokenizer_base.model", "wordpiece"])
def test_other_kinds_than_byte_level(name: str, data_folder: Path, command: Command) -> None:
    file = data_folder / "tokenizers" / name
    shown = command("tokenizer", "inspect", file, "--text", "Hello 你").out
    assert "Ġ" not in shown and any(word in shown for word in ("▁Hello", "hello"))
    assert "its text becomes" in command("tokenizer", "vocab", file).out


def test_glitch_of_a_model_that_hardly_learned(gpt2: Path, here: Path, command: Command, refused: Refused) -> None:
    outcome = command("tokenizer", "glitch", "--model", gpt2, "--data", "prose.txt")
    tokens = Tokenizer.load(gpt2).vocab_size
    assert outcome.code == 0 and f"{tokens} rows for {tokens} tokens" in outcome.out and "suspects" in outcome.out
    assert "train the model first" in refused("tokenizer", "glitch", "--model", gpt2, "--data", "prose.txt", "--fix", "mended")
    assert command("tokenizer", "glitch", "--model", gpt2, "--fix", "mended").code == 0
    assert Tokenizer.load(here / "mended").vocab_size == tokens
    assert "reads at most 64" in refused("tokenizer", "glitch", "--model", gpt2, "--probe", 1)  # the question is longer


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["compare"], "compare home-zh home-en"),
        (["compare", "absent"], "absent"),
        (["compare", "home-en", "--text", "absent.txt"], "absent.txt"),
        (["compare", "--kinds", "twon"], "did you mean 'town'?"),
        (["glitch", "home-en"], "needs a corpus or a model"),
        (["glitch"], "needs a tokenizer or a model"),
        (["glitch", "home-en", "--fix", "out"], "add --model"),
        (["glitch", "home-en", "--probe", "3"], "add --model"),
        (["vocab"], "tokenizer vocab --help"),
        (["inpect", "home-en"], "did you mean 'inspect'?"),
    ],
)
def test_what_cannot_be_used(words: list[str], expected: str, here: Path, refused: Refused) -> None:
    assert expected in refused("tokenizer", *words)


def test_every_page_in_a_browser(here: Path, command: Command) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH")
    sync = pytest.importorskip("playwright.sync_api")
    shows = {
        "compare": (["home-zh", "home-en"], "论文的"),
        "inspect": (["home-zh", "--text", TEXT], "👩"),
        "vocab": (["home-zh"], "part of a character"),
        "glitch": (["home-zh", "--data", "prose.txt"], "磨坊"),
    }
    for action, (words, _) in shows.items():
        assert command("tokenizer", action, *words, "--html", f"{action}.html").code == 0
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for action, (_, expected) in shows.items():
            view, file = browser.new_page(), here / f"{action}.html"
            said: list[str] = []
            asked: list[str] = []
            view.on("console", lambda message, said=said: said.append(message.text))
            view.on("request", lambda request, asked=asked: asked.append(request.url))
            view.goto(file.as_uri())
            view.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            for width in (390, 1280):
                view.set_viewport_size({"width": width, "height": 900})
                assert view.evaluate("document.documentElement.scrollWidth") <= width
            assert said == [] and [url for url in asked if url not in (file.as_uri(), "data:,")] == []
            assert expected in view.evaluate("document.querySelector('main').textContent")
            view.close()
        browser.close()
