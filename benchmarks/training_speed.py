"""The table of `benchmarks.training`, out of benchmarks/results/training.json, for the guides.

python -m benchmarks.training_speed            # print it
python -m benchmarks.training_speed --write    # and put it into docs/en/training.md and docs/zh/training.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.pages import DOCS, LANGUAGES, table, write

RESULTS = Path(__file__).parent / "results" / "training.json"
PEERS = (
    "nanoGPT",
    "transformers Trainer",
    "nanoGPT, memory kept",
    "hornbook, usual memory",
    "hornbook, compiled",
    "hornbook, dropout of weights",
)
HEADER = {
    "en": ("tokens per second", "hornbook", *PEERS),
    "zh": (
        "每秒词元数",
        "hornbook",
        "nanoGPT",
        "transformers Trainer",
        "nanoGPT，保留内存",
        "hornbook，通常的内存",
        "hornbook，编译",
        "hornbook，对权重做 dropout",
    ),
}
NOTE = {
    "en": "In parentheses: how many times as fast hornbook is, median of {rounds} rounds, lower to upper quartile. {cpu}, "
    "{threads} threads, torch {torch}, transformers {transformers}.",
    "zh": "括号里是 hornbook 的速度是它的几倍：{rounds} 轮的中位数，下四分位到上四分位。{cpu}，{threads} 个线程，torch {torch}，"
    "transformers {transformers}。",
}


def block(record: dict[str, Any], language: str) -> str:
    """The table, and where and how it was measured."""

    def cell(found: dict[str, Any], peer: str) -> str:
        if peer not in found["tokens_per_second"]:
            return ""
        low, median, high = found["times_as_fast"][peer]
        return f"{found['tokens_per_second'][peer][1]:,.0f} ({median:.2f}, {low:.2f} to {high:.2f})"

    rows = record["rows"]
    lines = [
        [name, f"{found['tokens_per_second']['hornbook'][1]:,.0f}", *(cell(found, peer) for peer in PEERS)]
        for name, found in rows.items()
    ]
    measured = next(iter(rows.values()))
    said = NOTE[language].format(rounds=measured["rounds"], **measured["machine"])
    return f"{table(HEADER[language], lines)}\n\n{said}"


def main() -> None:
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    for language in LANGUAGES:
        found = block(record, language)
        print(found, "\n")
        if "--write" in sys.argv[1:]:
            write(DOCS / language / "training.md", "speed", found)


if __name__ == "__main__":
    main()
