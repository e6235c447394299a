"""Tasks: a model and held-out material -> a score with its interval.

bits per byte   how well unseen documents are predicted; does not depend on the tokenizer, so models can be compared
exact match     the answer to a question, word for word, in one chat turn
choices         which of several endings the model finds likeliest
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from hornbook.batch import IGNORE
from hornbook.errors import UserError
from hornbook.evals.score import ratio, wilson
from hornbook.generation.decode import generate, prompt_ids
from hornbook.generation.sampling import Sampling
from hornbook.model import TransformerModel
from hornbook.text.chat import document
from hornbook.text.tokenizer import Tokenizer

TOGETHER = 8192  # tokens that are read in one go: the logits of more would not fit beside a model in training


@dataclass(frozen=True)
class BitsPerByte:
    """`interval` is None where a single document gives none."""

    value: float
    interval: tuple[float, float] | None
    documents: int
    bytes: int
    nats_per_token: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Score:
    """How many of how many, with a few of the answers; `chance` where guessing has a known rate."""

    correct: int = 0
    total: int = 0
    chance: float | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, right: bool, example: dict[str, Any], keep: int = 8) -> None:
        """Count one answer; keep the first few right and the first few wrong ones as examples."""
        self.correct, self.total = self.correct + right, self.total + 1
        if sum(shown["correct"] == right for shown in self.examples) < keep:
            self.examples.append({**example, "correct": right})

    def record(self) -> dict[str, Any]:
        return {
            "correct": self.correct, "total": self.total, "accuracy": self.correct / max(1, self.total),
            "interval": list(wilson(self.correct, self.total)), "chance": self.chance, "examples": self.examples,
        }  # fmt: skip


def bits_per_byte(
    model: TransformerModel, tokenizer: Tokenizer, texts: Sequence[str], context: int, batch: int = 32
) -> BitsPerByte:
    """-log2 p(text) per UTF-8 byte over whole documents, each begun afresh; tokens that stand for no text are not counted.

    A document longer than the context is read in windows that overlap by half, each token scored once.
    """
    batch = max(1, min(batch, TOGETHER // context))
    nats, sizes, tokens = [0.0] * len(texts), [len(text.encode()) for text in texts], 0
    windows = sorted(_windows(tokenizer, texts, context), key=lambda window: len(window[1]))
    specials = set(tokenizer.specials.values())
    special = torch.tensor(sorted(specials), dtype=torch.long)
    for start in range(0, len(windows), batch):
        group = windows[start : start + batch]
        losses_bt = _losses(model, [ids for _, ids, _ in group], [scored for _, _, scored in group], tokenizer.vocab_size, special)
        for (number, ids, scored), row in zip(group, losses_bt, strict=True):
            nats[number] += float(row.sum())
            tokens += sum(token not in specials for token in ids[len(ids) - scored :])
    value, low, high = ratio([figure / math.log(2) for figure in nats], sizes)
    return BitsPerByte(value, None if math.isnan(low) else (low, high), len(texts), sum(sizes), sum(nats) / max(1, tokens))


def _windows(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> Iterator[tuple[int, list[int], int]]:
    """(document, ids, how many of the last targets are scored): the scored parts tile each document."""
    for number, text in enumerate(texts):
        ids = document(tokenizer, text)
        scored = min(context, len(ids) - 1)
        yield number, ids[: scored + 1], scored
        while scored < len(ids) - 1:
            fresh = min(max(1, context // 2), len(ids) - 1 - scored)
            yield number, ids[scored + fresh - context : scored + fresh + 1], fresh
            scored += fresh


@torch.inference_mode()
def _losses(
    model: TransformerModel, rows: Sequence[Sequence[int]], scored: Sequence[int], vocab: int, special: torch.Tensor | None = None
) -> torch.Tensor:  # fmt: skip
    """Nats of each target (B, T), zero where it is not scored or `special`. Rows are padded on the right, which a causal model
    cannot see. The model's rows from `vocab` on stand for no token and are never said: they have no probability.
    """
    device, width = next(model.parameters()).device, max(map(len, rows)) - 1
    tokens_bt = torch.zeros((len(rows), width), dtype=torch.long)
    targets_bt = torch.full((len(rows), width), IGNORE)
    for row, (ids, count) in enumerate(zip(rows, scored, strict=True)):
        tokens_bt[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets_bt[row, len(ids) - 1 - count : len(ids) - 1] = torch.tensor(ids[len(ids) - count :])
    if special is not None:
        targets_bt = targets_bt.masked_fill(torch.isin(targets_bt, special), IGNORE)
    logits_btv = model(tokens_bt.to(device))[..., :vocab].float()
    losses_n = F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.to(device).flatten(), ignore_index=IGNORE, reduction="none")
    return losses_n.view(targets_bt.shape).cpu()


def normal(text: str) -> str:
    """The text as answers are compared: one Unicode form, single spaces, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(
    model: TransformerModel,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[str, str]],
    max_tokens: int = 48,
    chance: float | None = None,
) -> Score:
    """Ask each (question, answer) as one chat turn; right is the whole answer and nothing else, ended by the model itself."""
    prompts = [tokenizer.render([{"role": "user", "content": question}], prompt=True)[0] for question, _ in questions]
    score = Score(chance=chance)
    for (question, answer), found in zip(questions, generate(model, tokenizer, prompts, Sampling(max_tokens)), strict=True):
        right = normal(found.text) == normal(answer) and found.finish == "stop"
        score.add(right, {"prompt": question, "expected": answer, "answer": found.text})
    return score


def endings(model: TransformerModel, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], batch: int = 32) -> list[float]:
    """log p(ending | context) in nats of each pair of texts; the two are encoded apart."""
    rows, counts = [], []
    for before, ending in pairs:
        before_ids, ending_ids = prompt_ids(tokenizer, before), tokenizer.encode(ending)
        if not before_ids:
            raise UserError("a context must hold at least one token", where=f"{before!r}", fix="write something before the ending")
        rows.append([*before_ids, *ending_ids])
        counts.append(len(ending_ids))
    figures: list[float] = []
    for start in range(0, len(rows), batch):
        losses_bt = _losses(model, rows[start : start + batch], counts[start : start + batch], tokenizer.vocab_size)
        figures += [-float(row.sum()) for row in losses_bt]
    return figures


def multiple_choice(model: TransformerModel, tokenizer: Tokenizer, rows: Sequence[dict[str, Any]]) -> Score:
    """Rows of query, choices, gold: right where the gold choice has the highest log probability per byte."""
    score = Score(chance=sum(1 / len(row["choices"]) for row in rows) / max(1, len(rows)))
    figures = iter(endings(model, tokenizer, [(row["query"], choice) for row in rows for choice in row["choices"]]))
    for row in rows:
        per_byte = [next(figures) / max(1, len(choice.encode())) for choice in row["choices"]]
        best = per_byte.index(max(per_byte))
        score.add(
            best == row["gold"], {"prompt": row["query"], "expected": row["choices"][row["gold"]], "answer": row["choices"][best]}
        )
    return score


def continuation_match(model: TransformerModel, tokenizer: Tokenizer, rows: Sequence[dict[str, Any]]) -> Score:
    """Rows of context, continuation: right where greedy text begins with the continuation."""
    longest = max(len(tokenizer.encode(row["continuation"])) for row in rows)
    found = generate(model, tokenizer, [row["context"] for row in rows], Sampling(longest + 4))
    score = Score()
    for row, completion in zip(rows, found, strict=True):
        right = completion.text.strip().startswith(row["continuation"].strip())
        score.add(right, {"prompt": row["context"], "expected": row["continuation"], "answer": completion.text})
    return score


FORMS = {
    ("query", "choices", "gold"): multiple_choice,
    ("context", "continuation"): continuation_match,
    ("question", "answer"): None,
}


def run_task(model: TransformerModel, tokenizer: Tokenizer, path: Path, limit: int | None) -> Score:
    """Score a JSONL file whose rows all have one of the three forms."""
    rows, form = read_task(path, limit)
    if form == ("question", "answer"):
        return exact_match(model, tokenizer, [(row["question"], row["answer"]) for row in rows])
    scorer = FORMS[form]
    assert scorer is not None
    return scorer(model, tokenizer, rows)


def read_task(path: Path, limit: int | None) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The file's rows and their form; a row that does not fit is an error that names its line."""
    if not path.is_file():
        raise UserError(f"no such task file: {path}", where="--task", fix="name a .jsonl file")
    rows: list[dict[str, Any]] = []
    form: tuple[str, ...] | None = None
    lines = path.read_bytes().split(b"\n")  # by line feeds alone: a text may hold other characters that break lines
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        if limit is not None and len(rows) >= limit:
            break
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                "not a JSON line", where=f"{path}:{number}", why=str(error), fix="write one JSON object per line"
            ) from error
        form = form or next((keys for keys in FORMS if isinstance(row, dict) and all(key in row for key in keys)), None)
        if form is None or not isinstance(row, dict) or not all(key in row for key in form):
            forms = "; ".join(" ".join(keys) for keys in FORMS)
            raise UserError("the row has none of the known forms", where=f"{path}:{number}", fix=f"give every row one of: {forms}")
        if (why := _misfit(row, form)) is not None:
            raise UserError("the row cannot be scored", where=f"{path}:{number}", why=why, fix="correct that row")
        rows.append(row)
    if form is None:
        raise UserError("the task file is empty", where=str(path), fix="write one JSON object per line")
    return rows, form


def _misfit(row: dict[str, Any], form: tuple[str, ...]) -> str | None:
    """What is wrong with the values of a row that has its form's keys; None where nothing is."""
    choices, texts = [], {key: row[key] for key in form if key not in ("choices", "gold")}
    if "choices" in form:
        choices = row["choices"] if isinstance(row["choices"], list) else []
        texts |= {f"choices[{number}]": choice for number, choice in enumerate(choices)}
        if not isinstance(row["gold"], int) or not 0 <= row["gold"] < len(choices):
            return f"gold must be the number of one of its {len(choices)} choices, counted from 0: {row['gold']!r}"
    return next((f"{name} must be text: {text!r}" for name, text in texts.items() if not isinstance(text, str)), None)
