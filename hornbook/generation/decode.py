"""Prompts -> completions, token by token with a cache; batches are padded on the left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hornbook.errors import UserError
from hornbook.families import Model, context_length, decoder
from hornbook.generation.cache import DenseCache
from hornbook.generation.sampling import Sampling, choose
from hornbook.model import Context
from hornbook.text.tokenizer import Tokenizer


@dataclass
class Completion:
    """What was generated. finish: "stop" at an end token, "length" at max_tokens or at the model's context."""

    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = "length"


def generate(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[str | Sequence[int]], sampling: Sampling = Sampling(),
    batch: int = 64,
) -> list[Completion]:  # fmt: skip
    """One completion per prompt, in order. A prompt is text, which begins a document, or ids, such as a rendered chat."""
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # like lengths together: less padding
    done: dict[int, Completion] = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        found = {row: Completion("") for row in rows}
        for step in steps(model, [ids[row] for row in rows], sampling, tokenizer.end_ids, rows, tokenizer.vocab_size):
            for row, token, logprob, finish in step:
                if finish != "stop":
                    found[row].tokens.append(token)
                    found[row].logprobs.append(logprob)
                found[row].finish = finish or found[row].finish
        done |= found
    for completion in done.values():
        pieces = tokenizer.stream()  # which keeps the space that a word begins with, as the text goes on
        completion.text = "".join([*map(pieces.push, completion.tokens), pieces.flush()])
    return [done[row] for row in range(len(ids))]


def stream(model: Model, tokenizer: Tokenizer, prompt: str | Sequence[int], sampling: Sampling = Sampling()) -> Iterator[str]:
    """The completion of one prompt in pieces of whole characters, as they come."""
    pieces = tokenizer.stream()
    for step in steps(model, [prompt_ids(tokenizer, prompt)], sampling, tokenizer.end_ids, [0], tokenizer.vocab_size):
        for _, token, _, finish in step:
            if finish != "stop" and (piece := pieces.push(token)):
                yield piece
    if rest := pieces.flush():
        yield rest


def prompt_ids(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """Text as the beginning of a document; ids as they are."""
    if not isinstance(prompt, str):
        return list(prompt)
    return [*tokenizer.begin_ids, *tokenizer.encode(prompt)]


@torch.inference_mode()
def steps(
    model: Model, prompts: Sequence[Sequence[int]], sampling: Sampling, end_ids: Sequence[int], names: Sequence[int],
    vocab: int | None = None,
) -> Iterator[list[tuple[int, int, float, str]]]:  # fmt: skip
    """Each step's (name, token, log probability, finish) for the rows still going; finish is "" while a row goes on.

    `names` number the rows and seed their draws, so a row's text does not depend on which others are beside it. The model's rows
    from `vocab` on stand for no token: they have no probability.
    """
    model = decoder(model)
    device = next(model.parameters()).device
    longest, limit = max(map(len, prompts)), context_length(model)
    _check(prompts, longest, limit, model.stem.get_parameter("tokens.weight").shape[0])
    rooms = [sampling.max_tokens if limit is None else min(sampling.max_tokens, limit - len(ids) + 1) for ids in prompts]
    names, cache = list(names), DenseCache(longest + max(rooms))
    generators = [torch.Generator().manual_seed(_seed(sampling.seed, name)) for name in names]
    tokens_bt, positions_bt, padding_bs = _left_padded(prompts, longest, device)
    for count in range(1, max(rooms) + 1):
        hidden = model.hidden(tokens_bt, Context(positions_bt=positions_bt, padding_bs=padding_bs, cache=cache))
        logits_bv = model.head(hidden[:, -1])[:, :vocab]
        chosen = choose(logits_bv, sampling, generators)
        logprobs = logits_bv.float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0].tolist()
        ids = chosen.tolist()
        full = [count == room for room in rooms]
        finishes = ["stop" if token in end_ids else "length" if last else "" for token, last in zip(ids, full, strict=True)]
        yield list(zip(names, ids, logprobs, finishes, strict=True))
        rows = [row for row, finish in enumerate(finishes) if not finish]
        if not rows:
            return
        if len(rows) < len(names):
            kept = torch.tensor(rows, device=device)
            cache.keep(kept)
            chosen, positions_bt, padding_bs = chosen[kept], positions_bt[kept], padding_bs[kept]
            names, rooms = [names[row] for row in rows], [rooms[row] for row in rows]
            generators = [generators[row] for row in rows]
        tokens_bt, positions_bt = chosen[:, None], positions_bt[:, -1:] + 1
        padding_bs = torch.cat((padding_bs, padding_bs.new_ones((len(rows), 1))), 1)


def _seed(seed: int, name: int) -> int:
    """One seed out of two. Torch's generator reads 32 bits of it, so both have to be mixed into those."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


def _left_padded(prompts: Sequence[Sequence[int]], longest: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    tokens_bt = torch.zeros((len(prompts), longest), dtype=torch.long)
    padding_bs = torch.zeros((len(prompts), longest), dtype=torch.bool)
    for row, ids in enumerate(prompts):
        tokens_bt[row, longest - len(ids) :] = torch.tensor(ids)
        padding_bs[row, longest - len(ids) :] = True
    positions_bt = (padding_bs.cumsum(-1) - 1).clamp(min=0)
    return tokens_bt.to(device), positions_bt.to(device), padding_bs.to(device)


def _check(prompts: Sequence[Sequence[int]], longest: int, limit: int | None, rows: int) -> None:
    if any(len(ids) == 0 for ids in prompts):
        raise UserError(
            "a prompt must hold at least one token", where="prompt", fix="write something, or use a model with a begin token"
        )
    outside = next((token for ids in prompts for token in ids if not 0 <= token < rows), None)
    if outside is not None:
        raise UserError(
            f"token {outside} is outside the model's vocabulary", where="prompt", why=f"the embedding has rows 0 to {rows - 1}",
            fix="use the tokenizer that belongs to the model",
        )  # fmt: skip
    if limit is not None and longest > limit:
        raise UserError(
            f"the prompt has {longest} tokens and the model reads at most {limit}",
            where="prompt",
            fix="shorten it, or begin a new chat",
        )
