"""A run's own files -> report.json, and from it report.html."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hornbook
from hornbook.checkpoint.pretrained import load_model
from hornbook.evals.report import render_report
from hornbook.evals.rows import samples_of
from hornbook.families import decoder
from hornbook.files import read_lines, sha256, write_json, write_text
from hornbook.stages.corpus import saved_documents
from hornbook.stages.keep import METRICS, lineage, place, timings
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.layers import LAYERS
from hornbook.train.meter import peak_memory

EXAMPLES = {
    "en": "Hornbooks taught the alphabet; in 2026 they teach machines.",
    "zh": "角帖教孩子认字母；到了2026年，它教机器写字。",
}


def record_of(out: Path, plan: dict[str, Any], evaluation: dict[str, Any], tokenizer: Tokenizer, command: str) -> dict[str, Any]:
    """Everything that is known about the run, as report.json holds it."""
    recipe = plan["recipe"]
    funnel = json.loads((out / "corpus" / "funnel.json").read_text(encoding="utf-8"))
    tokens = (out / "shards" / "train.bin").stat().st_size // (2 if tokenizer.vocab_size <= 1 << 16 else 4)
    seconds = timings(out)
    model = decoder(load_model(out / "pretrained"))
    return {
        "title": f"{recipe['data']} in {plan['asked']['minutes']:g} minutes" if plan["asked"]["steps"] is None else recipe["data"],
        "command": command, "version": hornbook.__version__, "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "outcome": "finished", "identity": plan["identity"], "data": {"name": recipe["data"], "language": recipe["language"]},
        "timings": seconds, "total_seconds": sum(seconds.values()), "peak_memory_bytes": peak_memory(), "funnel": funnel,
        "split": {"train": funnel["train"] | {"tokens": tokens}, "held_out": funnel["held_out"]},
        "tokenizer": _tokenizer(out, tokenizer, recipe["split"], funnel["train"], tokens),
        "plan": {
            "rule": plan["rule"], "minutes": plan["asked"]["minutes"], "tokens_per_second": plan["tokens_per_second"],
            "model": {"parameters": sum(p.numel() for p in model.parameters()), "layers": len(model.spec.tower.blocks),
                      "dim": model.spec.tower.dim, "heads": model.config.get("num_attention_heads", model.config.get("n_head")),
                      "vocab": model.config["vocab_size"]},
            "batch_tokens": recipe["rows"] * recipe["accumulate"] * recipe["context"], "steps": recipe["steps"],
            "learning_rate": recipe["learning_rate"], "context": recipe["context"], "sft_steps": plan["sft"]["steps"],
        },
        "evaluation": evaluation, "samples": samples_of(metrics(out)), "config": {"pretrain": recipe, "sft": plan["sft"]},
        "lineage": {"corpus": lineage(out / "corpus"), "tokenizer": tokenizer.fingerprint, "shards": lineage(out / "shards"),
                    "pretrained": sha256(out / "pretrained" / "model.safetensors"),
                    "tuned": sha256(out / "tuned" / "model.safetensors")},
        "model_folder": str(out / "model"), "talk": f"hornbook chat {out}",
    }  # fmt: skip


def write_report(out: Path, record: dict[str, Any]) -> None:
    write_json(out / "report.json", record)
    write_text(out / "report.html", render_report(record, metrics(out), read_lines(out / LAYERS)))


def metrics(out: Path) -> list[dict[str, Any]]:
    """The run's rows; of a step that a kill made run twice, the later one."""
    rows = {place(row): row for row in read_lines(out / METRICS)}
    order = {"pretrain": 0, "sft": 1}
    return sorted(rows.values(), key=lambda row: (order.get(row["stage"], 2), row["step"]))


def _tokenizer(out: Path, tokenizer: Tokenizer, split: str, train: dict[str, int], tokens: int) -> dict[str, Any]:
    texts = [document.text[:160] for document in saved_documents(out / "corpus", "held_out")[:2]] + list(EXAMPLES.values())
    examples = []
    for text in texts:
        ids = tokenizer.encode(text)
        examples.append({"text": text, "pieces": [_shown(tokenizer.token_bytes(token)) for token in ids], "ids": ids})
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    longest = sorted((piece for piece in pieces if piece), key=len, reverse=True)[:20]
    return {
        "vocab": tokenizer.vocab_size, "split": split, "bytes_per_token": train["bytes"] / max(1, tokens - 2 * train["documents"]),
        "fingerprint": tokenizer.fingerprint, "examples": examples, "longest": [_shown(piece) for piece in longest],
        "first_merges": [_shown(piece) for piece in pieces[256:276]],
    }  # fmt: skip


def _shown(piece: bytes) -> str:
    """A token as text, or as the hexadecimal of its bytes where it is part of a character."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return piece.hex(" ")
