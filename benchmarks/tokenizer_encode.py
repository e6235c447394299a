"""Encode the same texts with cl100k's vocabulary, hornbook beside its peers, round by round in one process, on one core.

    python -m benchmarks.tokenizer_encode [--folder CHINESE] [--megabytes 10] [--rounds 5]

MB/s of UTF-8, documents of at most 64 kB, the ids equal to tiktoken's before a time counts. "fresh" is a new encoder's first pass
over a text that it has not met, "again" the next pass. Peers give lists of ids; hornbook gives an array, or a list. Then the worst
cases, a megabyte of one character, of spaces, of random Chinese, and how much longer twice as much takes; two threads against one;
and what a new process waits for its first ids, and for compiled code that the cache holds or does not. The vocabulary comes out of
the package bpe-openai (see docs/en/tokenizers.md).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken

from benchmarks.corpus import corpus
from hornbook.text import tokenizer as module
from hornbook.text.split import PATTERNS
from hornbook.text.tokenizer import Tokenizer

Encode = Callable[[list[str]], Any]


def encoders(folder: Path) -> dict[str, Callable[[], Encode]]:
    """By name, what makes a new encoder of a list of documents."""
    ours = Tokenizer.load("cl100k")
    ranks = {ours.token_bytes(i): i for i in range(ours.vocab_size) if i not in ours.specials.values()}
    theirs = tiktoken.Encoding("cl100k", pat_str=PATTERNS["cl100k"], mergeable_ranks=ranks, special_tokens={})
    ours.save(folder)

    def hornbook(as_list: bool) -> Encode:
        fresh = Tokenizer(ours.document)
        fresh.encode_array("x" * (module.SMALL + 1))  # the encoder is made, and has met no text
        return lambda texts: [fresh.encode(text) for text in texts] if as_list else fresh.encode_batch(texts)[0]

    found: dict[str, Callable[[], Encode]] = {
        "hornbook, array": lambda: hornbook(False),
        "hornbook, list": lambda: hornbook(True),
        "tiktoken": lambda: lambda texts: [theirs.encode_ordinary(text) for text in texts],
    }
    try:
        import bpe_openai

        found["bpe-openai"] = lambda: lambda texts: [bpe_openai.get_encoding("cl100k_base").encode(text) for text in texts]
    except ImportError:
        pass
    try:
        from tokenizers import Tokenizer as Theirs

        other = Theirs.from_file(str(folder / "tokenizer.json"))
        found["tokenizers"] = lambda: lambda texts: [other.encode(text, add_special_tokens=False).ids for text in texts]
    except ImportError:
        pass
    try:
        import gigatoken

        def giga() -> Encode:
            made = gigatoken.Tokenizer(str(folder / "tokenizer.json"))
            return lambda texts: [made.encode(text) for text in texts]

        giga()(["a"])
        found["gigatoken"] = giga
    except Exception as problem:  # noqa: BLE001 - a peer that cannot open the file is left out, and said
        print(f"gigatoken is left out: {problem}")
    return found


def flat(ids: Any) -> list[int]:
    return ids.tolist() if hasattr(ids, "tolist") else [int(i) for each in ids for i in each]


def texts_of_one_kind(makers: dict[str, Callable[[], Encode]], texts: list[str], rounds: int) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts)
    expected = flat(makers["tiktoken"]()(texts))
    seconds: dict[str, dict[str, list[float]]] = {name: {"fresh": [], "again": []} for name in makers}
    names = list(makers)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if name == "tokenizers" and number > 0 and len(seconds[name]["fresh"]) > 1:
                continue  # two rounds of the slowest are enough
            encode = makers[name]()
            for state in ("fresh", "again"):
                start = time.perf_counter()
                found = encode(texts)
                seconds[name][state].append(time.perf_counter() - start)
            if number == 0 and flat(found) != expected:
                print(f"{name} gives other ids and is left out")
                del seconds[name]
                names.remove(name)
                break
    speed = {name: {state: size / 1e6 / statistics.median(each) for state, each in by.items()} for name, by in seconds.items()}
    return {"bytes": size, "tokens": len(expected), "mb_per_second": speed}


def worst(encode: Encode) -> dict[str, dict[str, float]]:
    generator, found = random.Random(0), {}
    cases = {"one character": "a", "spaces": " ", "random Chinese": None}
    for name, unit in cases.items():
        text = unit * 1_000_000 if unit else "".join(chr(generator.randint(0x4E00, 0x9FA5)) for _ in range(333_333))
        more = text * 2 if unit else text + "".join(chr(generator.randint(0x4E00, 0x9FA5)) for _ in range(333_333))
        times = {1: list[float](), 2: list[float]()}
        for _ in range(7):
            for size, each in ((1, text), (2, more)):
                start = time.perf_counter()
                encode([each])
                times[size].append(time.perf_counter() - start)
        once, twice = (statistics.median(times[size]) for size in (1, 2))
        found[name] = {"mb_per_second": len(text.encode()) / 1e6 / once, "twice_as_much_takes": twice / once}
    return found


def threads(texts: list[str], rounds: int) -> float:
    """How many times as fast two threads are."""
    tokenizer, times = Tokenizer.load("cl100k"), {1: [], 2: []}
    for count in (1, 2):
        tokenizer.encode_batch(texts, threads=count)
    for _ in range(rounds):
        for count in (1, 2):
            start = time.perf_counter()
            tokenizer.encode_batch(texts, threads=count)
            times[count].append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[2])


def starts(folder: Path) -> dict[str, float]:
    """Seconds of a new process: the first ids, compiled code from the cache, and compiling it."""
    first = (
        "import sys, time; import hornbook as hb; t = hb.Tokenizer.load(sys.argv[1]); "
        "s = time.perf_counter(); t.encode('hello'); print(time.perf_counter() - s)"
    )
    warm = (
        "import time; s = time.perf_counter(); from hornbook.text import compiled; compiled.part('encode'); "
        "print(time.perf_counter() - s)"
    )
    with tempfile.TemporaryDirectory() as empty:
        runs = {"first_ids": (first, {}), "from_cache": (warm, {}), "compiled": (warm, {"NUMBA_CACHE_DIR": empty})}
        return {
            name: float(
                subprocess.run(
                    [sys.executable, "-c", code, str(folder)], env=os.environ | extra, capture_output=True, text=True, check=True
                ).stdout
            )
            for name, (code, extra) in runs.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=10, help="of each kind of text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokenizer_encode.json")
    given = parser.parse_args()
    cores = os.sched_getaffinity(0)
    record: dict[str, Any] = {"rounds": given.rounds, "texts": {}}
    with tempfile.TemporaryDirectory() as name:
        makers = encoders(Path(name))
        record["seconds_of_a_new_process"] = starts(Path(name))
        os.sched_setaffinity(0, {min(cores)})
        kinds = corpus(given.folder, 10**12 if given.megabytes > 100 else int(4e7))
        for kind, texts in kinds.items():
            some, size = [], 0
            for text in texts:
                some.append(text)
                size += len(text.encode())
                if size > given.megabytes * 1e6:
                    break
            if some:
                record["texts"][kind] = found = texts_of_one_kind(makers, some, given.rounds)
                print(f"\n{kind}: {found['bytes']:,} bytes, {found['tokens']:,} tokens; MB/s fresh and again, and times tiktoken")
                base = found["mb_per_second"]["tiktoken"]["fresh"]
                for peer, by in found["mb_per_second"].items():
                    print(f"  {peer:18}" + "".join(f"{by[s]:8.1f} ({by[s] / base:5.1f}x)" for s in ("fresh", "again")), flush=True)
        record["worst"] = worst(makers["hornbook, array"]())
        os.sched_setaffinity(0, cores)
        record["two_threads"] = threads(kinds["code"][:600], given.rounds)
    print(json.dumps({key: record[key] for key in ("worst", "two_threads", "seconds_of_a_new_process")}, indent=1))
    given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
