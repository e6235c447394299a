"""Keys and values of the past, so that a new token costs one position and not the whole text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Slot:
    k_bsgk: Tensor
    v_bsgk: Tensor
    positions_bs: Tensor
    length: int = 0


class DenseCache:
    """One buffer per layer, (batch, capacity, G, K), filled from the front. Key positions are stored, for they are not indices."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.slots: dict[int, Slot] = {}

    def update(self, layer: int, k_btgk: Tensor, v_btgk: Tensor, positions_bt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append this call's keys and values; returns all of the layer's (views), and their positions (B, S)."""
        batch, fresh = k_btgk.shape[:2]
        if layer not in self.slots:
            shape = (batch, self.capacity, *k_btgk.shape[2:])
            positions_bs = positions_bt.new_zeros((batch, self.capacity))
            self.slots[layer] = Slot(k_btgk.new_zeros(shape), v_btgk.new_zeros(shape), positions_bs)
        slot = self.slots[layer]
        end = slot.length + fresh
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions: {end} are needed")
        slot.k_bsgk[:, slot.length : end] = k_btgk
        slot.v_bsgk[:, slot.length : end] = v_btgk
        slot.positions_bs[:, slot.length : end] = positions_bt
        slot.length = end
        return slot.k_bsgk[:, :end], slot.v_bsgk[:, :end], slot.positions_bs[:, :end]

    def keep(self, rows: Tensor) -> None:
        """Leave only these batch rows, as when the others have ended."""
        for slot in self.slots.values():
            slot.k_bsgk, slot.v_bsgk, slot.positions_bs = slot.k_bsgk[rows], slot.v_bsgk[rows], slot.positions_bs[rows]
