"""Hidden tokens: how many of each kind, which never, by whole words, and the same ones after a run goes on."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hornbook.batch import IGNORE, Batch
from hornbook.data.batches import Batches, StreamRows
from hornbook.data.masking import MaskedRows, Masking

VOCAB, SPECIALS = 50, (0, 17, 49)
MASK = 49
LENGTHS = np.array([0 if token in SPECIALS else 1 + token % 5 for token in range(VOCAB)])


def ids(rows: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))


def hidden(masking: Masking, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    batch = masking.batch(rows, 0, np.arange(len(rows)))
    return batch.tokens_bt.numpy(), batch.targets_bt.numpy()


def within(successes: int, trials: int, probability: float) -> bool:
    """Inside of five standard deviations of a binomial count."""
    return abs(successes - trials * probability) < 5 * math.sqrt(trials * probability * (1 - probability))


def test_shares_are_within_binomial_bounds() -> None:
    rows = ids(400, 500)
    tokens, targets = hidden(Masking(MASK, LENGTHS), rows)
    ordinary, chosen = ~np.isin(rows, SPECIALS), targets != IGNORE
    count = int(chosen.sum())
    assert within(count, int(ordinary.sum()), 0.15)
    assert within(int((tokens == MASK)[chosen].sum()), count, 0.8)
    changed = chosen & (tokens != MASK) & (tokens != rows)
    assert within(int(changed.sum()), count, 0.1 * 46 / 47), "the random id is sometimes the same"
    assert within(int((tokens == rows)[chosen].sum()), count, 0.1 + 0.1 / 47)
    assert not within(int((tokens == MASK)[chosen].sum()), count, 0.81), "the bounds are narrow enough to tell"
    drawn = np.bincount(tokens[changed], minlength=VOCAB)
    assert all(within(int(found), int(drawn.sum()), 1 / 47) for found in drawn[LENGTHS > 0])


def test_specials_are_neither_chosen_nor_put_in_and_the_rest_stays() -> None:
    rows = ids(100, 200)
    tokens, targets = hidden(Masking(MASK, LENGTHS, share=1.0), rows)
    special, chosen = np.isin(rows, SPECIALS), targets != IGNORE
    assert (chosen == ~special).all() and (targets[chosen] == rows[chosen]).all()
    assert set(np.unique(tokens[chosen])) & set(SPECIALS) == {MASK}
    tokens, targets = hidden(Masking(MASK, LENGTHS), rows)
    assert (tokens == rows)[targets == IGNORE].all()


def test_words_are_chosen_whole() -> None:
    rows, continues = ids(300, 100), np.arange(VOCAB) % 2 == 1  # odd ids, the special 17 too, go on with a word
    targets = hidden(Masking(MASK, LENGTHS, continues_v=continues), rows)[1]
    words = chosen_words = tokens_of_longer = 0
    for row, asked in zip(rows, targets != IGNORE, strict=True):
        word: list[int] = []
        for place, token in enumerate([*row, 0]):
            if word and not (continues[token] and token not in SPECIALS):
                assert len({bool(asked[part]) for part in word}) == 1, "a word is hidden whole or not at all"
                words, chosen_words = words + 1, chosen_words + int(asked[word[0]])
                tokens_of_longer += len(word) > 1
                word = []
            if token not in SPECIALS:
                word.append(place)
    assert tokens_of_longer > words / 10 and within(chosen_words, words, 0.15)
    alone = hidden(Masking(MASK, LENGTHS), rows)[1] != IGNORE
    assert (alone != (targets != IGNORE)).any()


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.tokens_bt, b.tokens_bt) and torch.equal(a.targets_bt, b.targets_bt) and a.text_bytes == b.text_bytes


def test_a_run_that_goes_on_hides_the_same() -> None:
    def batches(rows: int = 3) -> Batches:
        stream = StreamRows(ids(1, 200)[0], 16, LENGTHS, seed=1)
        return Batches(MaskedRows(stream, Masking(MASK, LENGTHS, seed=4)), rows, seed=2)

    whole = list(islice(batches(), 12))
    for stop in range(12):
        first, second = batches(), batches()
        list(islice(first, stop))
        torch.manual_seed(stop)
        np.random.seed(stop)
        second.load_state(first.state())
        assert all(same(a, b) for a, b in zip(whole[stop:], islice(second, 12 - stop), strict=True))
    one_by_one = torch.cat([batch.targets_bt for batch in islice(batches(1), 12)])
    assert torch.equal(one_by_one, torch.cat([batch.targets_bt for batch in whole[:4]])), "the batch's size changes nothing"


def test_seeds_epochs_and_samples_hide_differently() -> None:
    row = np.full(200, 5)
    drawn = [
        Masking(MASK, LENGTHS, seed).hide(row, epoch, sample)[1].tobytes()
        for seed, epoch, sample in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(set(drawn)) == 4


def test_bytes_are_those_of_the_hidden_text() -> None:
    batch = Masking(MASK, LENGTHS).batch(ids(5, 40), 0, np.arange(5))
    assert batch.text_bytes == sum(int(LENGTHS[target]) for target in batch.targets_bt.flatten().tolist() if target != IGNORE)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="special"):
        Masking(5, LENGTHS)
    with pytest.raises(ValueError, match="share"):
        Masking(MASK, LENGTHS, share=0.0)
