"""Sizes of a run -> the bytes that one process hands to the network in an optimizer step, for each kind of parallelism.

Collectives are counted as a ring runs them: each of n processes hands its neighbour (n-1)/n of the tensor for a reduce-scatter or
an all-gather and twice that for an all-reduce, and gets as much from the other side (Patarasuk and Yuan 2009, section 3). Left out:
sums of a few numbers (losses, counts, norms, flags, which expert gets how many rows); what fills up a size that n does not divide;
what recomputed layers send a second time; what Muon gathers; under tensor parallelism the routers' weights and logits behind a
softcap. `tests/parallel/test_traffic.py` counts what is really sent.

All sizes are in bytes: a tensor's numbers times those that each takes.
"""

from __future__ import annotations


def half(size: float, ranks: int) -> float:
    """A reduce-scatter to, an all-gather of, or an even all-to-all of so many bytes."""
    return size * (ranks - 1) / ranks


def all_reduce(size: float, ranks: int) -> float:
    return 2 * half(size, ranks)


def copies(weights: float, outside: float, ranks: int, zero: int, micro_batches: int) -> float:
    """Copies of `weights`, the gradients as large as they; `outside` of them belong to no block and are gathered once less."""
    if zero == 0:
        return all_reduce(weights, ranks)
    if zero == 3:
        return micro_batches * half(3 * weights - outside, ranks)
    return half(weights, ranks) * (1 + (1 if zero == 1 else micro_batches))  # gathered once, in the first forward pass


def tensor(hidden: float, ops: int, ends: int, ranks: int, sequence: bool, norms: float = 0) -> float:
    """Per micro-batch. hidden: B * T * D; ops: attentions and feed-forwards; ends: how many of embedding and head are here.

    Each op sums its result in the forward pass and its input's gradient in the backward pass; the embedding sums its result, the
    head its input's gradient. With `sequence` each of an op's sums is a reduce-scatter and an all-gather instead, which is as much;
    x is gathered once more behind the tower and its gradient in front of it; and the gradients of `norms` are summed. The three
    numbers per row that a head's ranks tell each other are `rows`.
    """
    extra = 2 * half(hidden, ranks) + all_reduce(norms, ranks) if sequence else 0.0
    return all_reduce(hidden, ranks) * (2 * ops + ends) + extra


def rows(tokens: float, ranks: int) -> float:
    """Per micro-batch, in a head whose vocabulary is cut. tokens: B * T, that have a target."""
    return all_reduce(3 * tokens, ranks)


def pipeline(hidden: float, stage: int, stages: int, micro_batches: int, ties: float) -> float:
    """hidden: B * T * D of the longest micro-batch, to the next stage and as a gradient to the one before; ties: of the parameters
    that the first and the last stage both hold.
    """
    neighbours = (stage > 0) + (stage < stages - 1)
    return micro_batches * neighbours * hidden + (all_reduce(ties, 2) if neighbours == 1 else 0.0)


def experts(chosen: float, mixtures: int, ranks: int) -> float:
    """Per micro-batch, where routing is even: there and back, forward and backward. chosen: B * T * D * experts per token."""
    return 4 * mixtures * half(chosen, ranks)


# --- for comparison: what hornbook does not do --------------------------------------------------------------------------------


def parameter_server(weights: float, workers: int) -> tuple[float, float]:
    """What the server and what each worker sends and gets: gradients in, weights out (Li et al. 2014). The server is the narrow
    place, for its share grows with the workers; a ring's stays under 2 * weights.
    """
    return 2 * workers * weights, 2 * weights


def data_parallel(weights: float, gpus: int, micro_batches: int) -> float:
    """Through the first GPU's link in torch's `DataParallel`, one process with a thread per GPU: weights out in every forward pass,
    gradients in after every backward pass, beside inputs and outputs.
    """
    return 2 * (gpus - 1) * weights * micro_batches
