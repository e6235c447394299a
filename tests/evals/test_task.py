"""Scores against one full forward per token, on models whose answers are known, and on one that has learned a little."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hornbook.errors import UserError
from hornbook.evals.score import wilson
from hornbook.evals.task import (
    Score,
    bits_per_byte,
    continuation_match,
    endings,
    exact_match,
    multiple_choice,
    normal,
    read_task,
    run_task,
)  # fmt: skip
from hornbook.generation.decode import prompt_ids
from hornbook.model import TransformerModel
from hornbook.text.chat import document
from hornbook.text.tokenizer import Tokenizer
from tests.reference import scoring
from tests.reference.models import DECODERS, TEXTS, reciting_model, small_tokenizer, tokenized_model

families = pytest.mark.parametrize("family", DECODERS)
LONG = ["".join(TEXTS)[:300], "", "a", "你好<|end|>🙂", "The fox ran. " * 12]


# --- bits per byte --------------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("context", [8, 9, 32])
def test_bits_per_byte_equals_one_forward_per_token(family: str, context: int) -> None:
    """Among the texts some are many contexts long, one is empty, and one spells a special token."""
    model, tokenizer = tokenized_model(family)
    found = bits_per_byte(model, tokenizer, LONG, context)
    slow = [scoring.document_nats(model, tokenizer, text, context) for text in LONG]
    assert found.bytes == sum(len(text.encode()) for text in LONG) and found.documents == len(LONG)
    assert math.isclose(found.value, sum(map(sum, slow)) / math.log(2) / found.bytes, rel_tol=1e-6)
    tokens = sum(len(tokenizer.encode(text)) for text in LONG)
    assert sum(map(len, slow)) == tokens
    assert math.isclose(found.nats_per_token, sum(map(sum, slow)) / tokens, rel_tol=1e-6)
    assert found.interval is not None
    low, high = found.interval
    assert low < found.value < high


@families
def test_the_batch_and_the_order_of_texts_do_not_matter(family: str) -> None:
    model, tokenizer = tokenized_model(family)
    figures = [bits_per_byte(model, tokenizer, LONG, 16, batch=batch).value for batch in (1, 3, 7, 100)]
    figures.append(bits_per_byte(model, tokenizer, LONG[::-1], 16).value)
    assert max(figures) - min(figures) < 1e-6 * figures[0]


def test_a_guessing_model_has_a_known_score() -> None:
    """All words equally likely: log2(vocabulary) bits per token, whatever the windows."""
    tokenizer = small_tokenizer()
    model = reciting_model(tokenizer, [], sure=0.0)
    for context in (1, 2, 5, 100):
        found = bits_per_byte(model, tokenizer, LONG, context)
        tokens = sum(len(tokenizer.encode(text)) for text in LONG)
        assert math.isclose(found.value, tokens * math.log2(tokenizer.vocab_size) / found.bytes, rel_tol=1e-6)
        assert math.isclose(found.nats_per_token, math.log(tokenizer.vocab_size), rel_tol=1e-6)


@pytest.mark.parametrize("rows", [1, 50])
def test_rows_that_stand_for_no_token_have_no_probability(rows: int) -> None:
    """One of each two is far likelier than any word, whatever stands before it: the scores are those of the model without them."""
    model, tokenizer = tokenized_model("llama")
    wide, _ = tokenized_model("llama")
    weight = model.head.get_parameter("out.weight").detach()
    wide.head.out.weight = torch.nn.Parameter(torch.cat((weight, 3 * weight[:rows], -3 * weight[:rows])))
    assert wide(torch.tensor([[1]])).shape[-1] == tokenizer.vocab_size + 2 * rows
    assert bits_per_byte(wide, tokenizer, LONG, 16).value == pytest.approx(
        bits_per_byte(model, tokenizer, LONG, 16).value, rel=1e-9
    )
    assert endings(wide, tokenizer, PAIRS) == pytest.approx(endings(model, tokenizer, PAIRS), rel=1e-6)


def test_a_certain_token_counts_as_a_token() -> None:
    """A model so sure that its loss rounds to zero on one text and is wrong on another: the mean is over all tokens."""
    tokenizer, text = small_tokenizer(), "The baker met"
    model = reciting_model(tokenizer, document(tokenizer, text), sure=60.0)
    assert bits_per_byte(model, tokenizer, [text], 64).value == 0
    texts = [text, "A fox"]
    slow = [nats for text in texts for nats in scoring.document_nats(model, tokenizer, text, 64)]
    assert math.isclose(bits_per_byte(model, tokenizer, texts, 64).nats_per_token, sum(slow) / len(slow), rel_tol=1e-6)


def test_a_record_says_what_was_measured() -> None:
    model, tokenizer = tokenized_model("llama")
    record = bits_per_byte(model, tokenizer, LONG, 16).record()
    assert set(record) == {"value", "interval", "documents", "bytes", "nats_per_token"}
    assert json.loads(json.dumps(record))["documents"] == len(LONG)


# --- endings and choices --------------------------------------------------------------------------------------------------

PAIRS = [("The baker", " met"), ("The baker", " met the miller at the bridge."), ("", "A fox"), ("你", "好"), ("a <|end|>", "")]


@families
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_endings_equal_one_forward_per_token(family: str, batch: int) -> None:
    model, tokenizer = tokenized_model(family)
    found = endings(model, tokenizer, PAIRS, batch)
    for (before, ending), figure in zip(PAIRS, found, strict=True):
        expected = scoring.ending(model, prompt_ids(tokenizer, before), tokenizer.encode(ending))
        assert math.isclose(figure, expected, rel_tol=1e-5, abs_tol=1e-9)


def test_an_ending_needs_something_before_it() -> None:
    model, _ = tokenized_model("llama")
    bare = Tokenizer.train(TEXTS, vocab=300, specials=("<|end|>",))
    assert len(endings(model, bare, [("The", " fox")])) == 1
    with pytest.raises(UserError, match="at least one token(.|\n)*Fix:"):
        endings(model, bare, [("The", " fox"), ("", "A fox")])


@families
def test_the_choice_is_the_likeliest_per_byte(family: str) -> None:
    model, tokenizer = tokenized_model(family)
    choices = [" met the miller.", " ran", " over the hill, and the hen did not.", " 你好"]
    rows = [{"query": text, "choices": choices[: 2 + n], "gold": gold} for n, text in enumerate(TEXTS) for gold in range(2 + n)]
    score = multiple_choice(model, tokenizer, rows)
    right = 0
    for row in rows:
        before = prompt_ids(tokenizer, row["query"])
        per_byte = [scoring.ending(model, before, tokenizer.encode(c)) / len(c.encode()) for c in row["choices"]]
        right += max(range(len(per_byte)), key=lambda n, figures=per_byte: figures[n]) == row["gold"]
    assert (score.correct, score.total) == (right, len(rows)) and right == len(TEXTS)  # each choice was gold once
    assert math.isclose(score.chance, len(TEXTS) / len(rows))
    assert {shown["correct"] for shown in score.examples} == {True, False}


def test_length_alone_does_not_decide() -> None:
    """A model that guesses gives every token the same chance, so the choice with the most bytes per token wins.

    Here that is not the one with the fewest tokens, nor the one with the most characters per token.
    """
    tokenizer = Tokenizer.train(["你好世界 the miller"] * 9, vocab=281)
    model = reciting_model(tokenizer, [], sure=0.0)
    choices = ["你好世界你好世界", " miller", " the miller, and z"]
    tokens = [len(tokenizer.encode(choice)) for choice in choices]
    letters = [len(choice) / count for choice, count in zip(choices, tokens, strict=True)]
    assert tokens[0] > min(tokens) and letters[0] < max(letters)
    found = [multiple_choice(model, tokenizer, [{"query": "x", "choices": choices, "gold": gold}]).correct for gold in range(3)]
    assert found == [1, 0, 0]


# --- answers --------------------------------------------------------------------------------------------------------------


def answering(answer: str, question: str) -> tuple[TransformerModel, Tokenizer]:
    """A model that gives `answer` to every question as long as `question`."""
    tokenizer = small_tokenizer()
    ids, _ = tokenizer.render([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    return reciting_model(tokenizer, ids), tokenizer


def test_exact_match_is_the_whole_answer_ended() -> None:
    model, tokenizer = answering("at the bridge", "Where?")

    def right(answer: str, **settings: Any) -> int:
        return exact_match(model, tokenizer, [("Where?", answer)], **settings).correct

    assert right("at the bridge") and right("  at the\n bridge ")  # spaces are compared as one
    for wrong in ("at the", "at the bridge now", "At the bridge", "at thebridge", "", "bridge"):
        assert not right(wrong)
    words = len(tokenizer.encode("at the bridge"))
    assert right("at the bridge", max_tokens=words + 1) and not right("at the bridge", max_tokens=words)  # it has to end


def test_a_score_counts_and_shows() -> None:
    model, tokenizer = answering("yes", "a?")
    questions = [("a?", "yes" if n % 3 else "no") for n in range(30)]
    score = exact_match(model, tokenizer, questions, chance=0.5)
    record = score.record()
    assert (record["correct"], record["total"], record["accuracy"], record["chance"]) == (20, 30, 20 / 30, 0.5)
    assert record["interval"] == list(wilson(20, 30))
    shown = record["examples"]
    assert sum(example["correct"] for example in shown) == 8 and len(shown) == 16
    assert all(example["correct"] == (example["answer"] == example["expected"]) for example in shown)
    assert Score().record()["interval"] == [0.0, 1.0]


def test_answers_are_compared_in_one_unicode_form() -> None:
    assert normal("e\N{COMBINING ACUTE ACCENT}t") == "ét" == normal(" \u00e9t\u3000")
    assert normal("ﬁ") != "fi"  # a compatible character is another one


def test_continuations_begin_greedily() -> None:
    tokenizer = small_tokenizer()
    model = reciting_model(tokenizer, [*prompt_ids(tokenizer, "25-7="), *tokenizer.encode("18. And so on")])
    rows = [{"context": "25-7=", "continuation": text} for text in ("18", " 18.", "18. And", "1", "8", "19", "18.And")]
    assert [continuation_match(model, tokenizer, [row]).correct for row in rows] == [1, 1, 1, 1, 0, 0, 0]
    assert continuation_match(model, tokenizer, rows).correct == 4


CONVERSATIONS = [("Who met the miller?", "The baker."), ("Did the hen run?", "No, it did not."), ("你好", "世界 🙂")]


def learned() -> tuple[TransformerModel, Tokenizer]:
    """A model that has seen three conversations often enough to know them."""
    tokenizer = small_tokenizer()
    model, _ = tokenized_model("llama")
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in CONVERSATIONS]
    rows = [tokenizer.render(messages) for messages in turns]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        for ids, mask in rows:
            tokens = torch.tensor([ids])
            targets = tokens[0, 1:].masked_fill(torch.tensor(mask[1:]) == 0, -100)
            F.cross_entropy(model(tokens[:, :-1])[0], targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, tokenizer


def test_a_model_that_learned_three_answers_gives_them() -> None:
    model, tokenizer = learned()
    assert exact_match(model, tokenizer, CONVERSATIONS).correct == 3
    others = [(q, CONVERSATIONS[n - 1][1]) for n, (q, _) in enumerate(CONVERSATIONS)]
    assert exact_match(model, tokenizer, others).correct == 0
    before, _ = tokenizer.render([{"role": "user", "content": "Did the hen run?"}], prompt=True)
    assert scoring.ending(model, before, tokenizer.encode("No, it did not.")) > math.log(0.5)


# --- task files -----------------------------------------------------------------------------------------------------------

GOOD = [
    {"query": "a", "choices": ["b", "c"], "gold": 1, "more": "is allowed"}, {"context": "a", "continuation": "b"},
    {"question": "a", "answer": "b"},
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row", GOOD)
def test_each_form_is_read_and_scored(row: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "task.jsonl", [row] * 5)
    rows, form = read_task(path, None)
    assert rows == [row] * 5 and set(form) <= set(row)
    assert read_task(path, 2)[0] == [row] * 2
    score = run_task(*tokenized_model("llama"), path, 3)
    assert score.total == 3


def test_a_text_may_hold_any_character(tmp_path: Path) -> None:
    """JSON allows line and paragraph separators inside a text, so only a line feed ends a row."""
    row = {"question": "a\u2028b\u2029c\x85d", "answer": "\x0b\x0ce\r\n"}
    path = tmp_path / "task.jsonl"
    raw = json.dumps(row, ensure_ascii=False)
    assert "\u2028" in raw
    for ending in ("\n", "\r\n"):
        path.write_bytes((raw + ending + raw).encode())
        assert read_task(path, None)[0] == [row, row]
    path.write_bytes(b"\xef\xbb\xbf" + raw.encode())  # with a byte order mark
    assert read_task(path, None)[0] == [row]


@pytest.mark.parametrize(
    "bad",
    [
        "{", "", "[]", "3", "null", "{'question': 1}", {"question": "a"}, {"question": "a", "answers": "b"},
        {"question": "a", "answer": 3}, {"question": None, "answer": "b"},
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_named_by_its_line(bad: Any, tmp_path: Path) -> None:
    good = {"question": "a", "answer": "b"}
    for place in (1, 3):
        path = write(tmp_path / "task.jsonl", [good] * (place - 1) + [bad, good])
        with pytest.raises(UserError, match="Fix:") as caught:
            read_task(path, None)
        assert f"{path}:{place}" in str(caught.value)
    assert read_task(path, 2)[0] == [good] * 2  # what lies behind the limit is not looked at


@pytest.mark.parametrize(
    "change", [{"gold": 2}, {"gold": -1}, {"gold": "b"}, {"gold": 1.0}, {"choices": []}, {"choices": "bc"}, {"choices": ["b", 3]}]
)
def test_a_choice_that_is_none_is_named_by_its_line(change: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "task.jsonl", [GOOD[0], {**GOOD[0], **change}])
    with pytest.raises(UserError, match="(gold|choices)(.|\n)*Fix:") as caught:
        read_task(path, None)
    assert f"{path}:2" in str(caught.value)


def test_forms_are_not_mixed(tmp_path: Path) -> None:
    path = write(tmp_path / "task.jsonl", [GOOD[1], GOOD[2]])
    with pytest.raises(UserError, match="context continuation") as caught:
        read_task(path, None)
    assert f"{path}:2" in str(caught.value)


def test_no_file_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such task file(.|\n)*Fix:"):
        read_task(tmp_path / "none.jsonl", None)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="empty(.|\n)*Fix:"):
        read_task(tmp_path / "empty.jsonl", None)
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9", "answer": "b"}\n')
    with pytest.raises(UserError, match="latin.jsonl:1"):
        read_task(tmp_path / "latin.jsonl", None)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("copa", ("query", "choices", "gold")), ("hellaswag_small", ("query", "choices", "gold")),
        ("openbook_qa", ("query", "choices", "gold")), ("simple_arithmetic_nospaces", ("context", "continuation")),
    ],
)  # fmt: skip
def test_published_task_files_are_read(name: str, form: tuple[str, ...], data_folder: Path) -> None:
    path = data_folder / "eval" / f"{name}.jsonl"
    rows, found = read_task(path, None)
    assert found == form and len(rows) == sum(1 for line in path.read_bytes().split(b"\n") if line)


def test_one_document_has_a_value_and_no_interval() -> None:
    model, tokenizer = tokenized_model("llama")
    record = bits_per_byte(model, tokenizer, TEXTS[:1], context=16).record()
    assert record["value"] > 0 and record["interval"] is None
    assert json.loads(json.dumps(record, allow_nan=False)) == record
