"""What the trained models are worth: bits per byte of held-out documents, exact match on held-out questions, stories in grammar."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from hornbook.checkpoint.pretrained import load_model
from hornbook.data.town import Town
from hornbook.evals.task import Score, bits_per_byte, exact_match
from hornbook.families import context_length, decoder
from hornbook.files import written_folder
from hornbook.generation.decode import generate
from hornbook.generation.sampling import Sampling
from hornbook.model import TransformerModel
from hornbook.stages.corpus import saved_documents, saved_rows
from hornbook.stages.keep import kept, lineage
from hornbook.stages.voice import Voice
from hornbook.text.tokenizer import Tokenizer

STORY = Sampling(max_tokens=400, temperature=0.7, top_p=0.95)


def evaluate(
    base: Path, tuned: Path, tokenizer: Tokenizer, corpus: Path, town: Town | None, folder: Path, device: torch.device, voice: Voice
) -> dict[str, Any]:
    """Score both models; `town` checks stories where the corpus is the town. Returns the record of report.json's `evaluation`."""
    inputs = {"base": lineage(base), "tuned": lineage(tuned), "corpus": lineage(corpus)}
    voice.begin("evaluate", "held-out documents and questions")
    if kept(folder, inputs):
        voice.end("kept from before")
        return dict(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    texts = [document.text for document in saved_documents(corpus, "held_out")]
    models = [decoder(load_model(path), str(path)).to(device) for path in (base, tuned)]
    context = context_length(models[1]) or 256
    before, after = (bits_per_byte(model, tokenizer, texts, context) for model in models)
    record: dict[str, Any] = {
        "bits_per_byte": {
            "pretrained": before.value, "pretrained_interval": before.interval, "final": after.value,
            "interval": after.interval, "documents": after.documents, "bytes": after.bytes,
        }
    }  # fmt: skip
    questions = _questions(models[1], tokenizer, corpus, voice)
    if questions:
        record["questions"] = questions
    if town is not None:
        record["stories"] = _stories(models[1], tokenizer, corpus, town)
    with written_folder(folder, {"inputs": inputs}) as target:
        (target / "evaluation.json").write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
    voice.end(summary(record))
    return record


def summary(record: dict[str, Any]) -> str:
    """The scores in one line."""
    figures = record["bits_per_byte"]
    parts = [f"{figures['pretrained']:.3f} bits per byte pretrained, {figures['final']:.3f} tuned"]
    parts += [f"{kind} {row['correct']}/{row['total']}" for kind, row in record.get("questions", {}).items()]
    if "stories" in record:
        stories = record["stories"]
        parts.append(f"sampled stories in grammar {stories['correct']}/{stories['total']}")
        parts.append(f"coherent {stories['coherent']['correct']}/{stories['total']}")
    return "; ".join(parts)


def _questions(model: TransformerModel, tokenizer: Tokenizer, corpus: Path, voice: Voice) -> dict[str, Any]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in saved_rows(corpus, "questions"):
        kinds.setdefault(row["kind"], []).append(row)
    scores = {}
    for number, (kind, rows) in enumerate(kinds.items()):
        voice.progress(number, len(kinds), {})
        pairs = [(row["question"], row["answer"]) for row in rows]
        fitting = [pair for pair in pairs if _fits(model, tokenizer, pair[0])]
        if len(fitting) < len(pairs):
            voice.say(f"{len(pairs) - len(fitting)} of {len(pairs)} {kind} are longer than the model reads and are left out")
        if fitting:
            scores[kind] = exact_match(model, tokenizer, fitting, chance=rows[0].get("chance")).record()
            scores[kind]["too_long"] = len(pairs) - len(fitting)
    return scores


def _fits(model: TransformerModel, tokenizer: Tokenizer, question: str) -> bool:
    limit = context_length(model)
    return limit is None or len(tokenizer.render([{"role": "user", "content": question}], prompt=True)[0]) <= limit


def _stories(model: TransformerModel, tokenizer: Tokenizer, corpus: Path, town: Town) -> dict[str, Any]:
    """Sample a story to each held-out title. Two scores: every sentence is one that the town says and the story ends by itself;
    and no rule is broken at all, so the facts hold and nobody appears whom the title does not name."""
    prompts = [row["prompt"] for row in saved_rows(corpus, "story_prompts")]
    grammar, whole, reasons = Score(), Score(), Counter[str]()
    for prompt, found in zip(prompts, generate(model, tokenizer, prompts, STORY), strict=True):
        violations = town.check_story(prompt + found.text) + ([] if found.finish == "stop" else ["grammar: it does not end"])
        rules = {violation.partition(":")[0] for violation in violations}
        reasons.update(rules)
        example = {"prompt": prompt, "expected": "; ".join(violations), "answer": found.text}
        grammar.add("grammar" not in rules, example, keep=4)
        whole.add(not rules, example, keep=4)
    sampling = f"temperature {STORY.temperature}, top-p {STORY.top_p}"
    return grammar.record() | {"violations": dict(reasons), "sampling": sampling, "coherent": whole.record()}
