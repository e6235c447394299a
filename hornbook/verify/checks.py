"""The list of invariants, and those of text, models and data."""

from __future__ import annotations

import random
from tempfile import TemporaryDirectory

import numpy as np
import torch

from hornbook.batch import Batch
from hornbook.checkpoint.pretrained import load, save
from hornbook.data.batches import moved
from hornbook.data.packing import pack
from hornbook.families import decoder
from hornbook.generation.cache import DenseCache
from hornbook.generation.decode import generate
from hornbook.generation.sampling import Sampling
from hornbook.model import Context
from hornbook.train.objective import causal_lm
from hornbook.verify import runs, town
from hornbook.verify.proof import Check, Finding
from hornbook.verify.tiny import CONTEXT, VOCAB, precise, random_batch, tiny_model, tiny_tokenizer


def tokenizing(device: torch.device) -> Finding:
    """Any text comes back byte for byte, and nothing in a text becomes a special token."""
    tokenizer, dice = tiny_tokenizer(), random.Random(0)
    unicode = [*range(0xD800), *range(0xE000, 0x110000)]  # all but the halves of pairs, which are no characters
    texts = ["".join(map(chr, dice.choices(unicode, k=dice.randrange(40)))) for _ in range(200)]
    texts += [dice.randbytes(dice.randrange(80)).decode(kind, "replace") for kind in ("latin-1", "utf-8") for _ in range(200)]
    texts += [f"a {name}{name[:-1]}\n{name}" for name in tokenizer.specials]
    specials, wrong = set(tokenizer.specials.values()), 0
    for text in texts:
        ids = tokenizer.encode(text)
        wrong += tokenizer.decode_bytes(ids) != text.encode() or tokenizer.decode(ids) != text or not specials.isdisjoint(ids)
    return Finding(wrong, 0, f"of {len(texts)} texts changed")


@torch.no_grad()
def caching(device: torch.device) -> Finding:
    """A prompt and then token by token with the cache, against all at once."""
    device = precise(device)
    model, tokens_bt = tiny_model(device, torch.float64), random_batch(device, 3, CONTEXT, seed=1).tokens_bt
    cache, positions_bt = DenseCache(CONTEXT), torch.arange(CONTEXT, device=device)[None].expand(3, -1)
    cuts = [0, 5, *range(6, CONTEXT + 1)]
    pieces = [
        model(tokens_bt[:, start:end], Context(positions_bt=positions_bt[:, start:end], cache=cache))
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]
    return Finding(float((torch.cat(pieces, 1) - model(tokens_bt)).abs().max()), 1e-10, "logit difference")


def packing(device: torch.device) -> Finding:
    """Documents that share rows, against each one alone: the sum of losses and its gradients."""
    device = precise(device)
    dice = np.random.default_rng(0)
    documents = [dice.integers(0, VOCAB, size).tolist() for size in dice.integers(2, 15, 12)]
    rows, _ = pack(((ids, [1] * len(ids)) for ids in documents), CONTEXT, 0, np.ones(VOCAB, np.int64))
    together = [moved(rows.take(np.arange(len(rows)), 0), device)]
    alone = [Batch(ids[None, :-1], ids[None, 1:]) for ids in (torch.tensor(ids, device=device) for ids in documents)]
    figures = []
    for batches in (together, alone):
        model = tiny_model(device, torch.float64)
        total = torch.stack([causal_lm(model, batch).total for batch in batches]).sum()
        figures.append([total, *torch.autograd.grad(total, list(model.parameters()))])
    furthest = max(float((a - b).detach().abs().max()) for a, b in zip(*figures, strict=True))
    return Finding(furthest, 1e-10, "loss or gradient difference")


@torch.no_grad()
def exporting(device: torch.device) -> Finding:
    """A model on disk and back: the same logits to the bit, and the same texts."""
    model, tokenizer, tokens_bt = tiny_model(device), tiny_tokenizer(), random_batch(device, 2, CONTEXT, seed=2).tokens_bt
    with TemporaryDirectory() as place:
        save(model, tokenizer, f"{place}/model")
        opened, loaded_tokenizer = load(f"{place}/model")
    loaded = decoder(opened).to(device)
    prompts, sampling = ["", "Once", "The town "], Sampling(max_tokens=12)
    pairs = ((model, tokenizer), (loaded, loaded_tokenizer))
    texts = [[found.text for found in generate(*pair, prompts, sampling)] for pair in pairs]
    different = int((model(tokens_bt) != loaded(tokens_bt)).sum()) + sum(a != b for a, b in zip(*texts, strict=True))
    return Finding(different, 0, "logits or texts differ")


CHECKS = (
    Check("tokenizer", "texts there and back, specials stay text", tokenizing),
    Check("cached = full", "token by token against all at once", caching),
    Check("packed = separate", "documents in one row against each alone", packing),
    Check("accumulated = one batch", "ragged micro-batches against one batch", runs.accumulation),
    Check("guarded = never seen", "steps that are no numbers leave no trace", runs.guarding),
    Check("first loss", "an untrained model against pure chance", runs.first_loss),
    Check("one batch", "learned by heart", runs.overfitting),
    Check("resumed = uninterrupted", "stopped and continued, bit for bit", runs.resuming),
    Check("killed = uninterrupted", "signal 9, continued, bit for bit", runs.killing),
    Check("2 ranks = 1 rank", "two processes that share out gradients and moments", runs.sharing),
    Check("exported = model", "saved and loaded: logits and greedy text", exporting),
    Check("atomic writer", "a broken write leaves the old content", runs.writing),
    Check("town", "same seed, same bytes", town.town),
)
