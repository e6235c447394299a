"""Tiny Shakespeare in equal wall time: hornbook against nanoGPT at the CPU setting of its README.

    python benchmarks/shakespeare.py --input input.txt --nanogpt PATH_TO_A_CLONE

The last tenth of the text is held out; only the first nine tenths train a tokenizer or a model. nanoGPT runs first, as a process
of its own; hornbook then gets the same seconds as a whole process, its tokenizer's training included. Both read the held-out text
in windows of their own context that overlap by half, each byte scored once. Without --nanogpt that row says "not measured".
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTING = [
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1000", "--block_size=64", "--batch_size=12",
    "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
    "--eval_interval=1000", "--always_save_checkpoint=True",
]  # fmt: skip

# The size and rates of hornbook's model; each is an option too.
SIZES = {"vocab": 1024, "depth": 3, "dim": 96, "context": 128, "rows": 16, "rate": 0.02, "embedding_rate": 0.02}

# Runs inside the clone, with its own model and its own checkpoint.
SCORE_NANOGPT = """
import json, math, sys, torch
from model import GPT, GPTConfig
saved = torch.load("out/ckpt.pt", map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])).eval()
model.load_state_dict(saved["model"])
text, block = open("held_out.txt", encoding="utf-8").read(), saved["model_args"]["block_size"]
letters = json.load(open("letters.json"))
ids = torch.tensor([letters[c] for c in text])
nats, scored = 0.0, 0
with torch.no_grad():
    while scored < len(ids) - 1:
        fresh = min(block if scored == 0 else block // 2, len(ids) - 1 - scored)
        window = ids[max(0, scored + fresh - block) : scored + fresh + 1]
        logits, _ = model(window[None, :-1], window[None, 1:])
        nats += torch.nn.functional.cross_entropy(logits[0, -fresh:], window[-fresh:], reduction="sum").item()
        scored += fresh
print(nats / math.log(2) / len(text.encode()))
"""


def split(path: Path) -> tuple[str, str]:
    text = path.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    return text[:cut], text[cut:]


def run_nanogpt(clone: Path, train: str, held_out: str) -> tuple[float, float]:
    """(seconds of the whole training process, bits per byte) in a scratch copy of the clone."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("train.py", "model.py", "configurator.py"):
            (folder / name).write_text((clone / name).read_text())
        (folder / "config.py").write_text((clone / "config" / "train_shakespeare_char.py").read_text())
        data = folder / "data" / "shakespeare_char"
        data.mkdir(parents=True)
        (data / "input.txt").write_text(train + held_out, encoding="utf-8")
        (data / "prepare.py").write_text((clone / "data" / "shakespeare_char" / "prepare.py").read_text())
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)
        letters = {letter: number for number, letter in enumerate(sorted(set(train + held_out)))}
        (folder / "letters.json").write_text(json.dumps(letters))
        (folder / "held_out.txt").write_text(held_out, encoding="utf-8")
        start = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "config.py", *SETTING, "--out_dir=out"], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        seconds = time.perf_counter() - start
        score = subprocess.run([sys.executable, "-c", SCORE_NANOGPT], cwd=folder, check=True, capture_output=True, text=True)
        return seconds, float(score.stdout.splitlines()[-1])


def run_hornbook(train: str, held_out: str, seconds: float, settings: dict[str, float]) -> dict[str, float]:
    """Train within `seconds` of the start of a fresh process; returns its figures."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in (("train", train), ("held_out", held_out)):
            Path(scratch, f"{name}.txt").write_text(text, encoding="utf-8")
        command = [sys.executable, __file__, "--child", scratch, "--seconds", str(seconds), "--began", str(time.time())]
        command += [word for name in SIZES for word in (f"--{name}", str(settings[name]))]
        found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        return dict(json.loads(found.stdout.splitlines()[-1]))


def train_hornbook(folder: Path, seconds: float, began: float, settings: dict[str, float]) -> dict[str, float]:
    import numpy as np
    import torch

    from hornbook import Tokenizer
    from hornbook.data.batches import Batches, StreamRows
    from hornbook.evals.task import bits_per_byte
    from hornbook.families import build
    from hornbook.model import initialize
    from hornbook.optim.build import build_optimizer
    from hornbook.optim.schedule import warmup_decay
    from hornbook.plan.budget import model_config
    from hornbook.stages.measure import tokens_per_second
    from hornbook.train.loop import Run, fit
    from hornbook.train.objective import causal_lm

    text = (folder / "train.txt").read_text(encoding="utf-8")
    vocab, context, rows = int(settings["vocab"]), int(settings["context"]), int(settings["rows"])
    tokenizer = Tokenizer.train([text], vocab=vocab)
    ids = tokenizer.encode_array(text)
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(vocab)])
    config = model_config(int(settings["depth"]), int(settings["dim"]), vocab, context)

    step_seconds = rows * context / tokens_per_second(config, rows, context, "muon", torch.device("cpu"))
    steps = int(0.98 * (seconds - (time.time() - began)) / step_seconds)
    model, batches = initialize(build(config), 0), Batches(StreamRows(ids, context, lengths), rows, 0)
    optimizer = build_optimizer(model, "muon", settings["rate"], embedding_rate=settings["embedding_rate"])
    schedule = warmup_decay(steps, max(1, steps // 20))
    fit(model, batches, causal_lm, optimizer, schedule, Run(steps=steps, clip=1.0))
    trained = time.time() - began
    held_out = (folder / "held_out.txt").read_text(encoding="utf-8")
    score = bits_per_byte(model, tokenizer, [held_out], context)
    size = sum(parameter.numel() for parameter in model.parameters())
    return {"seconds": trained, "bits_per_byte": score.value, "steps": steps, "parameters": size, "tokens": steps * rows * context}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("../shared/data/corpora/tinyshakespeare/input.txt"))
    parser.add_argument("--nanogpt", type=Path, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--runs", type=int, default=3, help="interleaved pairs; the median is quoted")
    parser.add_argument("--seconds", type=float, default=100.0, help="hornbook's time where nanoGPT is not measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shakespeare.json"))
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train_hornbook(options.child, options.seconds, options.began, vars(options))))
        return
    train, held_out = split(options.input)
    pairs = []
    for number in range(options.runs):
        theirs = run_nanogpt(options.nanogpt, train, held_out) if options.nanogpt else None
        ours = run_hornbook(train, held_out, theirs[0] if theirs else options.seconds, vars(options))
        pairs.append({"nanogpt": theirs and {"seconds": theirs[0], "bits_per_byte": theirs[1]}, "hornbook": ours})
        print(json.dumps({"run": number, **pairs[-1]}), file=sys.stderr, flush=True)
    report(pairs, options.out)


def report(pairs: list[dict], out: Path) -> None:  # type: ignore[type-arg]
    from statistics import median

    print(f"{'':10} {'seconds':>8} {'bits/byte':>10}")
    for name in ("nanogpt", "hornbook"):
        rows = [pair[name] for pair in pairs if pair[name]]
        if rows:
            print(f"{name:10} {median(r['seconds'] for r in rows):8.1f} {median(r['bits_per_byte'] for r in rows):10.4f}")
        else:
            print(f"{name:10} {'not measured':>19}")
    ratios = [pair["hornbook"]["bits_per_byte"] / pair["nanogpt"]["bits_per_byte"] for pair in pairs if pair["nanogpt"]]
    if ratios:
        print(f"{'ratio':10} {'':8} {median(ratios):10.4f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"pairs": pairs, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
