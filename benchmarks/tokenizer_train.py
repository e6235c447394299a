"""Learn a vocabulary of 32,000 rows from the same documents, hornbook beside its peers, each run in its own process on one core.

    python -m benchmarks.tokenizer_train [--folder CHINESE] [--megabytes 100] [--rounds 3]

Wall and CPU seconds from documents in memory to merges in Python, and the memory that learning added at its highest. The split is
GPT-2's. Hugging Face's merges are compared with ours one by one before a time counts; the peers with other rules for ties (rustbpe,
bpeasy) are only timed. gigabpe reads lines of a file, so its documents are lines. Compiled code is warm: `hornbook tokenizer warm`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.corpus import corpus

ROWS = 32_000
PEERS = ("hornbook", "tokenizers", "rustbpe", "gigabpe", "bpeasy")


def learned(peer: str, documents: list[str], file: Path) -> list[Any]:
    """The merges (or what comes nearest), as Hugging Face spells them where they can be."""
    from hornbook.text.split import PATTERNS

    if peer == "hornbook":
        from hornbook.text.tokenizer import Tokenizer

        return Tokenizer.train(documents, vocab=ROWS, split="gpt2", specials=()).document["model"]["merges"]
    if peer == "tokenizers":
        from tokenizers import Tokenizer as Theirs
        from tokenizers import models, pre_tokenizers, trainers

        theirs = Theirs(models.BPE())
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        theirs.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=ROWS, show_progress=False, initial_alphabet=alphabet))
        return [" ".join(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]
    if peer == "rustbpe":
        import rustbpe

        other = rustbpe.Tokenizer()
        other.train_from_iterator(iter(documents), ROWS, pattern=PATTERNS["gpt2"])
        return list(other.get_mergeable_ranks())
    if peer == "gigabpe":
        import gigabpe

        return list(gigabpe.train_bpe([str(file)], ROWS, special_tokens=[], pretokenizer="bytelevel", threads=1)[1])
    import bpeasy

    return list(bpeasy.train_bpe(iter(documents), PATTERNS["gpt2"], 128, ROWS).items())


def memory(name: str) -> float:
    """A figure of this process in MB."""
    found = next(line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith(name + ":"))
    return int(found.split()[1]) / 1024


def run_one(peer: str, folder: Path) -> None:
    """In a process of its own: prints the record."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    documents = json.loads((folder / "documents.json").read_text("utf-8"))
    if peer == "hornbook":
        from hornbook.text import compiled

        compiled.warm()
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    merges = learned(peer, documents, folder / "documents.txt")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    added = memory("VmHWM") - before
    if peer in ("hornbook", "tokenizers"):
        (folder / f"{peer}.json").write_text(json.dumps(merges), "utf-8")
    print(json.dumps({"seconds": seconds, "cpu": cpu, "memory_mb": added, "merges": len(merges)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=list(PEERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokenizer_train.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return run_one(given.one[0], Path(given.one[1]))
    found = corpus(given.folder, int(given.megabytes * 1e6))
    documents = [text for texts in found.values() for text in texts]
    record: dict[str, Any] = {"bytes": {kind: sum(len(text.encode()) for text in texts) for kind, texts in found.items()}}
    record |= {"documents": len(documents), "rows": ROWS, "rounds": given.rounds, "runs": {peer: [] for peer in given.peers}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "documents.json").write_text(json.dumps(documents), "utf-8")
        (folder / "documents.txt").write_text("\n".join(documents), "utf-8")
        environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        for number in range(given.rounds):
            for peer in given.peers[number % len(given.peers) :] + given.peers[: number % len(given.peers)]:
                command = [sys.executable, "-m", "benchmarks.tokenizer_train", "--one", peer, str(folder)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    print(f"{peer} failed: {done.stderr.strip().splitlines()[-1:]}")
                    continue
                record["runs"][peer].append(json.loads(done.stdout.splitlines()[-1]))
                print(peer, done.stdout.splitlines()[-1], flush=True)
        if {"hornbook", "tokenizers"} <= set(given.peers):
            ours, theirs = (json.loads((folder / f"{peer}.json").read_text("utf-8")) for peer in ("hornbook", "tokenizers"))
            assert ours == theirs, f"merge {next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)} differs"
            record["merges_equal_to_tokenizers"] = len(ours)
    from hornbook.text import fast
    from hornbook.text.scan import MACHINES
    from hornbook.text.split import PATTERNS

    record["unique_words"] = len(fast.count(documents, MACHINES[PATTERNS["gpt2"]]).sizes)
    ours = record["runs"]["hornbook"]
    print(f"\n{sum(record['bytes'].values()):,} bytes, {record['unique_words']:,} unique words")
    for peer, runs in record["runs"].items():
        if runs:
            middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu", "memory_mb")}
            ratios = {key: middle[key] / max(statistics.median(run[key] for run in ours), 1e-9) for key in middle}
            record.setdefault("medians", {})[peer] = middle
            record.setdefault("ratios", {})[peer] = ratios
            print(f"  {peer:12}" + "".join(f"  {key} {middle[key]:8.2f} ({ratios[key]:5.1f}x)" for key in middle))
    given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
