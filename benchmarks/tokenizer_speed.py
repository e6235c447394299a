"""The tables of both tokenizer benchmarks, out of benchmarks/results, for the guides.

python -m benchmarks.tokenizer_speed [--write]        (--write puts them into docs/en/tokenizers.md and docs/zh/tokenizers.md)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
WORDS = {
    "en": {
        "train": "32,000 rows from {bytes} MB ({words} unique words), one core",
        "seconds": "seconds", "cpu": "CPU seconds", "memory": "MB added", "times": "times hornbook's CPU",
        "encode": "MB/s, fresh text / again (times tiktoken)", "worst": "One megabyte of", "speed": "MB/s",
        "twice": "twice as much takes",
        "other": "Two threads against one: {threads:.2f} times as fast. A new process has its first ids after {first_ids:.1f} ms, "
        "compiled code from the cache after {from_cache:.1f} s, without one after {compiled:.0f} s.",
    },
    "zh": {
        "train": "从 {bytes} MB 文本（{words} 个不同的词）学 32,000 行，单核",
        "seconds": "秒", "cpu": "CPU 秒", "memory": "增加的 MB", "times": "相对 hornbook 的 CPU 倍数",
        "encode": "MB/s，新文本 / 再来一遍（是 tiktoken 的几倍）",
        "worst": "一兆字节的", "speed": "MB/s", "twice": "两倍长度所需时间倍数",
        "other": "两个线程是一个的 {threads:.2f} 倍。新进程得到第一批 id 需 {first_ids:.1f} 毫秒，"
        "从缓存读编译好的代码需 {from_cache:.1f} 秒，没有缓存时需 {compiled:.0f} 秒。",
    },
}  # fmt: skip


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def written(language: str, train: dict[str, Any], encode: dict[str, Any]) -> str:
    words = WORDS[language]
    title = words["train"].format(bytes=round(sum(train["bytes"].values()) / 1e6), words=f"{train['unique_words']:,}")
    learning = table(
        [title, words["seconds"], words["cpu"], words["memory"], words["times"]],
        [
            [peer, f"{m['seconds']:.1f}", f"{m['cpu']:.1f}", f"{m['memory_mb']:.0f}", f"{train['ratios'][peer]['cpu']:.1f}"]
            for peer, m in train["medians"].items()
        ],
    )
    peers = [peer for peer in next(iter(encode["texts"].values()))["mb_per_second"]]

    def cell(by: dict[str, Any], peer: str) -> str:
        if peer not in by:
            return ""
        base = by["tiktoken"]
        return " / ".join(f"{by[peer][state]:.0f} ({by[peer][state] / base[state]:.1f})" for state in ("fresh", "again"))

    encoding = table(
        [words["encode"], *encode["texts"]],
        [[peer, *(cell(each["mb_per_second"], peer) for each in encode["texts"].values())] for peer in peers],
    )
    worst = table(
        [words["worst"], words["speed"], words["twice"]],
        [[name, f"{each['mb_per_second']:.0f}", f"{each['twice_as_much_takes']:.2f}"] for name, each in encode["worst"].items()],
    )
    new = encode["seconds_of_a_new_process"] | {"threads": encode["two_threads"]}
    return "\n\n".join((learning, encoding, worst, words["other"].format(**(new | {"first_ids": 1000 * new["first_ids"]}))))


def main() -> None:
    train, encode = (
        json.loads((ROOT / f"benchmarks/results/tokenizer_{name}.json").read_text("utf-8")) for name in ("train", "encode")
    )
    for language in WORDS:
        found = written(language, train, encode)
        print(found, "\n")
        if "--write" in sys.argv[1:]:
            page = ROOT / "docs" / language / "tokenizers.md"
            before, rest = page.read_text("utf-8").split(BEGIN)
            page.write_text(f"{before}{BEGIN}\n{found}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
