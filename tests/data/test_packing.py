"""Packing: nothing is lost, nothing is added, and documents in one row are as good as alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.batch import IGNORE, Batch
from hornbook.data.batches import Batches
from hornbook.data.packing import PackedRows, best_fit, pack, pack_stream
from hornbook.model import Context
from hornbook.train.objective import causal_lm
from tests.reference import order as slow
from tests.reference import plain_training
from tests.reference.tiny import FAMILIES, VOCAB, tiny_model

PAD = 0
LENGTHS = np.random.default_rng(9).integers(0, 12, VOCAB)
Documents = list[tuple[list[int], list[int]]]


def documents(count: int, longest: int, seed: int = 0) -> Documents:
    """Random ids and masks of 2 ids and more."""
    random = np.random.default_rng(seed)
    sizes = random.integers(2, longest + 1, count)
    return [(random.integers(0, VOCAB, size).tolist(), random.integers(0, 2, size).tolist()) for size in sizes]


def alone(ids: list[int], mask: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens and targets of one document by itself, written out."""
    targets = [token if learned else IGNORE for token, learned in zip(ids[1:], mask[1:], strict=True)]
    return tuple(ids[:-1]), tuple(targets)


def unpacked(rows: PackedRows) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...]]], int]:
    """The documents that the rows hold, told apart by number, and how many places are padding."""
    found, padding, batch = [], 0, rows.take(np.arange(len(rows)), epoch=0)
    assert batch.documents_bt is not None and batch.positions_bt is not None
    arrays = [part.numpy() for part in (batch.tokens_bt, batch.targets_bt, batch.documents_bt, batch.positions_bt)]
    assert {array.shape for array in arrays} == {(len(rows), rows.context)}
    for tokens, targets, numbers, positions in zip(*arrays, strict=True):
        for number in sorted(set(numbers.tolist()) - {-1}):
            (places,) = np.nonzero(numbers == number)
            assert places.tolist() == list(range(places[0], places[-1] + 1)), "a document is in one piece"
            assert positions[places].tolist() == list(range(len(places))), "positions start anew with each document"
            found.append((tuple(tokens[places].tolist()), tuple(targets[places].tolist())))
        empty = numbers == -1
        assert (tokens[empty] == PAD).all() and (targets[empty] == IGNORE).all() and (positions[empty] == 0).all()
        padding += int(empty.sum())
    assert rows.padding == pytest.approx(padding / (len(rows) * rows.context))
    return found, padding


@pytest.mark.parametrize(("count", "longest", "context"), [(1, 5, 4), (40, 9, 8), (60, 9, 30), (200, 40, 64), (300, 3, 50)])
def test_every_document_is_there_exactly_once(count: int, longest: int, context: int) -> None:
    given = documents(count, longest, seed=count)
    rows, too_long = pack(given, context, PAD, LENGTHS)
    found, padding = unpacked(rows)
    assert too_long == 0
    assert Counter(found) == Counter(alone(ids, mask) for ids, mask in given)
    assert padding == len(rows) * context - sum(len(ids) - 1 for ids, _ in given)


@pytest.mark.parametrize(("count", "longest", "context"), [(0, 1, 4), (1, 1, 1), (500, 9, 8), (400, 64, 64), (300, 500, 512)])
def test_the_fit_is_the_best_one(count: int, longest: int, context: int) -> None:
    """What is left of the rows against the slow version, which looks at every row; ties leave the same room."""
    for seed in range(5):
        sizes = np.minimum(np.random.default_rng(seed).integers(1, longest + 1, count), context)
        rows = best_fit(sizes, context)
        rooms = context - np.bincount(rows, sizes).astype(int)
        assert sorted(rooms.tolist()) == slow.rooms_of_best_fit(sizes.tolist(), context)


def test_a_window_is_packed_by_itself() -> None:
    sizes = np.random.default_rng(0).integers(1, 33, 1000)
    rows = best_fit(sizes, 32, window=300)
    assert (np.bincount(rows, sizes) <= 32).all() and sorted(set(rows.tolist())) == list(range(rows.max() + 1))
    for start in range(0, 1000, 300):
        part = rows[start : start + 300] - rows[start : start + 300].min()
        assert part.tolist() == best_fit(sizes[start : start + 300], 32).tolist()


BEGIN = VOCAB - 1


def stream(count: int, longest: int, seed: int = 0) -> tuple[np.ndarray, list[list[int]]]:
    """Documents that begin with `BEGIN`, which is nowhere else, as a shard and one by one."""
    draw = np.random.default_rng(seed)
    given = [[BEGIN, *draw.integers(0, BEGIN, draw.integers(0, longest)).tolist()] for _ in range(count)]
    return np.array([token for document in given for token in document], "<u2"), given


@pytest.mark.parametrize(
    ("count", "longest", "context"), [(1, 5, 4), (1, 90, 7), (60, 40, 8), (60, 40, 16), (200, 10, 64), (9, 9, 1)]
)
def test_every_token_of_a_stream_is_there_exactly_once(count: int, longest: int, context: int) -> None:
    """Only what is longer than a row is cut, after every `context` tokens; a document's last id is only ever a target."""
    ids, given = stream(count, longest, seed=count)
    rows = pack_stream(ids, BEGIN, context, PAD, LENGTHS)
    expected = Counter[Any]()
    for document in given:
        for start in range(0, len(document) - 1, context):
            piece = document[start : start + context + 1]
            expected[alone(piece, [1] * len(piece))] += 1
    found, padding = unpacked(rows)
    assert Counter(found) == expected
    assert padding == len(rows) * context - (len(ids) - count)


def test_every_epoch_of_packed_batches_holds_every_target_once() -> None:
    ids, given = stream(100, 30)
    rows = pack_stream(ids, BEGIN, 16, PAD, LENGTHS)
    expected = Counter(token for document in given for token in document[1:])
    for epoch in range(2):
        batches = Batches(rows, 1, seed=4)
        batches.load_state({"sample": epoch * len(rows)})
        targets = [token for _ in range(len(rows)) for token in next(batches).targets_bt.flatten().tolist()]
        assert Counter(targets) - Counter({IGNORE: targets.count(IGNORE)}) == expected


@pytest.mark.parametrize("ids", [[], [BEGIN], [BEGIN] * 5], ids=["nothing", "a beginning", "beginnings"])
def test_a_stream_without_a_target_gives_no_row(ids: list[int]) -> None:
    rows = pack_stream(np.array(ids, "<u2"), BEGIN, 1, PAD, LENGTHS)
    assert (len(rows), rows.padding) == (0, 1.0)


def test_a_stream_that_does_not_open_with_a_beginning_is_used_from_its_first_id() -> None:
    rows = pack_stream(np.array([3, 4, 5, BEGIN, 6], "<u2"), BEGIN, 8, PAD, LENGTHS)
    assert Counter(unpacked(rows)[0]) == Counter([((3, 4), (4, 5)), ((BEGIN,), (6,))])


def test_little_is_padding_where_documents_are_of_all_lengths() -> None:
    sizes = np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int) + 2
    ids = np.ones(int(sizes.sum()), "<u2")
    ids[np.cumsum(sizes) - sizes] = BEGIN
    assert pack_stream(ids, BEGIN, 512, PAD, LENGTHS).padding < 0.005


def test_what_does_not_fit_is_counted() -> None:
    """One id more than the row has places still fits, for the last id is only ever a target."""
    fitting, too_long = ([3] * 9, [1] * 9), ([3] * 10, [1] * 10)
    rows, left_out = pack([fitting, too_long, fitting, too_long, too_long], 8, PAD, LENGTHS)
    assert (len(rows), left_out) == (2, 3)
    assert unpacked(rows)[0] == [alone(*fitting)] * 2
    rows, left_out = pack([([], []), ([3], [1])], 8, PAD, LENGTHS)
    assert (len(rows), left_out) == (0, 2), "where nothing follows anything there is nothing to learn"
    assert pack([], 8, PAD, LENGTHS)[1] == 0


def test_bytes_are_those_of_the_counted_targets() -> None:
    rows, _ = pack(documents(30, 9), 16, PAD, LENGTHS)
    for number in range(len(rows)):
        batch = rows.take(np.array([number]), epoch=0)
        assert batch.text_bytes == sum(int(LENGTHS[token]) for token in batch.targets_bt.flatten().tolist() if token != IGNORE)


def packed_batch(given: Documents, context: int) -> Batch:
    rows, _ = pack(given, context, PAD, LENGTHS)
    assert len(rows) < len(given), "some row holds several documents"
    return rows.take(np.arange(len(rows)), epoch=0)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_packed_batch_equals_its_documents_alone(config: dict[str, Any]) -> None:
    """The sum of losses and all its gradients, in float64, against every document run by itself."""
    given = documents(14, 9, seed=2)
    batch, model, by_hand = packed_batch(given, 20), tiny_model(config), tiny_model(config)
    loss = causal_lm(model, batch)
    loss.total.backward()
    total = torch.zeros((), dtype=torch.float64)
    for tokens, targets in (alone(ids, mask) for ids, mask in given):
        each = plain_training.target_losses(by_hand, Batch(torch.tensor([tokens]), torch.tensor([targets])))
        total = total + (torch.stack(each).sum() if each else 0)
    total.backward()
    assert int(loss.count) == sum(sum(mask[1:]) for _, mask in given)
    assert abs(loss.total.item() - total.item()) < 1e-10
    for (name, ours), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-10, name


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_no_document_sees_another(config: dict[str, Any]) -> None:
    """d logits_i / d embedding_j is exactly 0 across documents and after i, and not 0 within one up to i."""
    batch, model = packed_batch(documents(6, 5, seed=4), 12), tiny_model(config)
    ctx = Context(positions_bt=batch.positions_bt, documents_bt=batch.documents_bt)
    x = model.stem(batch.tokens_bt, ctx)[0].detach().requires_grad_(True)
    logits_btv = model.head(model.tower(x, ctx))
    assert batch.documents_bt is not None
    for row, place in np.ndindex(*batch.tokens_bt.shape):
        (slope,) = torch.autograd.grad(logits_btv[row, place].square().sum(), x, retain_graph=True)
        size_bt, own = slope.abs().amax(-1), batch.documents_bt[row, place]
        seen = torch.zeros_like(size_bt, dtype=torch.bool)
        seen[row] = batch.documents_bt[row] == own
        if own >= 0:  # padding sees padding, which nobody asks
            seen[row, place + 1 :] = False
            assert (size_bt[seen] > 0).all()
        assert (size_bt[~seen] == 0).all()
