"""What is told of the singular values of a difference."""

from __future__ import annotations

from dataclasses import dataclass

#: The share of the difference's energy (the sum of squares) that is to be held.
ENERGY = 0.99

#: Ranks of which it is told how much they hold: those that LoRA adapters usually have.
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Spectrum:
    """What is known of the singular values of a difference [rows, columns].

    ``full``: the rank that it has at most. ``rank``: how many directions hold :data:`ENERGY` of
    it; None where those of the last of :data:`RANKS` do not. ``held``: for each of :data:`RANKS` up
    to ``full``, the share of the energy that so many hold at least. ``rounding``: the share that
    rounding the checkpoint to its dtype makes by itself, where its errors are even; 0 of fine
    dtypes. ``beyond_rounding``: how many directions hold :data:`ENERGY` of the rest; None where
    that is too little to say it.
    """

    full: int
    rank: int | None
    beyond_rounding: int | None
    held: dict[int, float]
    rounding: float
