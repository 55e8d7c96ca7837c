"""What a config says about attention: rows of heads have known orders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads there are for queries, for keys and values, and how wide each is."""

    query: int
    key_value: int
    dim: int
