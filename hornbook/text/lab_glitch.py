"""The tokenizer laboratory, glitch tokens: rows of a model's embedding that training never taught anything.

Counts, matrices (V, D) and callables flow in, suspects flow out; no model is imported here. One idea: some rows are known to be
untrained without asking anyone (rows past the last token, tokens out of every text's reach, such as the bytes that UTF-8 never
has), and every row that lies where those lie is under suspicion (Land and Bartolo, "Fishing for Magikarp", 2024, section 3). In
an output matrix all untrained rows are pushed the same way, away from every answer; in an input matrix they stay where they
began, or shrink with weight decay. In both, a trained row has left the place, so one measure serves: the distance to the mean of
the known untrained rows, where 1 is their own median distance. Where no row is known, the untrained rows of an output matrix show
themselves: they lie far closer together than any rows that were taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hornbook.errors import UserError
from hornbook.text.lab_vocab import shown, unreachable
from hornbook.text.tokenizer import Tokenizer

Rows = NDArray[np.bool_]
NEAR = 1.75  # a row at most so far out is taken for untrained


def usage(tokenizer: Tokenizer, documents: Iterable[str], rows: int | None = None) -> NDArray[np.int64]:
    """How often the documents produce each id (rows)."""
    counts = np.zeros(rows or tokenizer.vocab_size, np.int64)
    for text in documents:
        counts += np.bincount(tokenizer.encode_array(text), minlength=len(counts))
    return counts


def never_produced(tokenizer: Tokenizer, rows: int) -> Rows:
    """The rows that no text can use: those past the last token, and tokens that even their own text does not give."""
    if rows < tokenizer.vocab_size:
        raise UserError(
            f"the matrix has {rows} rows, and the tokenizer {tokenizer.vocab_size} tokens",
            fix="use the tokenizer that the model was trained with",
        )
    known = np.zeros(rows, bool)
    known[tokenizer.vocab_size :] = True
    known[list(unreachable(tokenizer))] = True
    return known


def distances(weights_vd: NDArray[Any], known: Rows) -> NDArray[np.float64]:
    """Each row's distance (V) to the mean of the rows known to be untrained, in units of their own median distance."""
    weights = np.asarray(weights_vd, np.float64)
    away = np.linalg.norm(weights - weights[known].mean(0), axis=1)
    return away / max(float(np.median(away[known])), 1e-12)


@dataclass(frozen=True)
class Suspect:
    """A token under suspicion: `distance` 1 is where untrained rows lie; `uses` counts it in the corpus, where one was read."""

    id: int
    piece: str
    uses: int | None
    distance: float | None = None
    norm: float | None = None
    similarity: float | None = None


def unused(tokenizer: Tokenizer, counts: NDArray[np.int64]) -> list[Suspect]:
    """The tokens that stand for text, that some text would give, and that the counted documents never produced."""
    known = never_produced(tokenizer, len(counts))
    return [Suspect(i, shown(tokenizer.token_bytes(i)), 0) for i in _plain(tokenizer) if counts[i] == 0 and not known[i]]


def densest(weights_vd: NDArray[Any], most: int = 8192, neighbours: int = 8) -> Rows:
    """The rows (V) of the closest crowd: a row and its nearest neighbours, of at most `most` rows drawn from a seed.

    Where it is not twice as close as half of all rows are to their neighbours, there is no crowd, and no row is returned.
    In a small model, words that were seen a few times and mean the same can be such a crowd too: a lead, not a proof.
    """
    ids = np.random.default_rng(0).permutation(len(weights_vd))[:most]
    rows = np.asarray(weights_vd[ids], np.float32)
    square, crowd = (rows * rows).sum(1), np.zeros(len(weights_vd), bool)
    if len(ids) <= neighbours:
        return crowd
    reach, near = np.empty(len(ids)), np.empty((len(ids), neighbours + 1), np.int64)
    for start in range(0, len(ids), 1024):
        part = slice(start, start + 1024)
        apart = square[part, None] + square - 2 * rows[part] @ rows.T
        near[part] = np.argpartition(apart, neighbours, axis=1)[:, : neighbours + 1]
        reach[part] = np.sqrt(np.maximum(np.take_along_axis(apart, near[part], axis=1).max(1), 0))
    if reach.min() <= np.median(reach) / 2:
        crowd[ids[near[reach.argmin()]]] = True
    return crowd


def suspects(tokenizer: Tokenizer, matrices: Sequence[NDArray[Any]], counts: NDArray[np.int64] | None = None) -> list[Suspect]:
    """The tokens whose rows lie among untrained rows in every matrix (V, D), the nearest first.

    The matrices are a model's input and output embedding, one where they are tied; `norm` and `similarity` (the cosine to the
    mean untrained row) are those of the last. Tokens that no text can use are what the others are compared with, not suspects.
    """
    weights = np.asarray(matrices[-1], np.float64)
    known = never_produced(tokenizer, len(weights))
    reference = known if known.sum() > 1 else densest(matrices[-1])
    if not reference.any():
        return []
    away = np.max([distances(matrix, reference) for matrix in matrices], axis=0)
    norms, mean = np.linalg.norm(weights, axis=1), weights[reference].mean(0)
    alike = weights @ mean / np.maximum(norms * np.linalg.norm(mean), 1e-12)
    found = sorted((i for i in _plain(tokenizer) if away[i] <= NEAR and not known[i]), key=lambda i: away[i])
    return [
        Suspect(
            i, shown(tokenizer.token_bytes(i)), None if counts is None else int(counts[i]), float(away[i]), float(norms[i]),
            float(alike[i]),
        )
        for i in found
    ]  # fmt: skip


def _plain(tokenizer: Tokenizer) -> list[int]:
    """The tokens that stand for text: all but the specials."""
    return [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token)]


# --- while training, and before and after -----------------------------------------------------------------------------------


class TouchedRows:
    """Which rows of an embedding (V, D) any gradient reached: `weight.register_hook(touched.see)` in training.

    Of an input embedding, these are the ids that the batches held. A matrix that is also the head gets a gradient in every row.
    """

    def __init__(self, rows: int):
        self.touched = np.zeros(rows, bool)

    def see(self, gradient_vd: Any) -> None:
        self.touched |= np.asarray(gradient_vd != 0).any(-1)


def still_initial(before_vd: NDArray[Any], after_vd: NDArray[Any], tolerance: float = 1e-5) -> Rows:
    """The rows (V) that are what they were at the start, or that times a factor: weight decay alone moved them."""
    before, after = (np.asarray(weights, np.float64) for weights in (before_vd, after_vd))
    square = (before * before).sum(1)
    factor = np.divide((before * after).sum(1), square, out=np.zeros_like(square), where=square > 0)
    gone = np.linalg.norm(after - factor[:, None] * before, axis=1)
    return gone <= tolerance * np.maximum(np.linalg.norm(after, axis=1), 1e-12)


# --- ask the model, and mend it -----------------------------------------------------------------------------------------------


def repeats(tokenizer: Tokenizer, token: int, continued: Callable[[Sequence[int], int], Sequence[int]]) -> bool:
    """Whether the model says a token again when two examples and the token ask for it.

    `continued(ids, count)` is the model's greedy continuation. The token stands in the prompt by its id, not by its text.
    """
    asked = tokenizer.encode("Repeat: apple. Answer: apple.\nRepeat: river. Answer: river.\nRepeat:")
    said = tokenizer.decode_bytes(continued([*asked, token, *tokenizer.encode(". Answer:")], 6)).strip()
    piece = tokenizer.token_bytes(token).strip()
    return bool(piece) and said.startswith(piece)


def ordinary_words(tokenizer: Tokenizer, but: Sequence[int], count: int) -> list[int]:
    """Tokens that are words of four letters or more, drawn from a seed: what the suspects' answers are compared with."""
    words = [i for i in _plain(tokenizer) if (t := shown(tokenizer.token_bytes(i)))[0] == " " and t[4:] and t[1:].isalpha()]
    left = sorted(set(words) - set(but))
    return [left[i] for i in np.random.default_rng(0).permutation(len(left))[:count]]


def reinitialized(weights_vd: NDArray[Any], ids: Sequence[int], used: Rows, seed: int = 0) -> NDArray[Any]:
    """A copy of the matrix in which the rows `ids` are the mean of the used rows with a tenth of their spread as noise."""
    if not used.any():
        why = "every row lies among untrained ones, or is unused"
        raise UserError("no used row to begin from", why=why, fix="train the model first, or give a corpus that it knows")
    weights = np.array(weights_vd)
    center, spread = weights[used].mean(0), weights[used].std(0)
    noise = np.random.default_rng(seed).standard_normal((len(ids), weights.shape[1]))
    weights[list(ids)] = center + 0.1 * spread * noise
    return weights


def never(ids: Iterable[int], rows: int) -> NDArray[np.float32]:
    """What to add to logits (V) so that these ids are never sampled: -inf at each, else 0."""
    bias = np.zeros(rows, np.float32)
    bias[list(ids)] = -np.inf
    return bias
