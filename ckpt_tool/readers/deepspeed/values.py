"""Plain values out of the pickles of DeepSpeed, held to be what they are taken for."""

from __future__ import annotations

from collections.abc import ItemsView, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.torch_save.rebuilding import TensorRef, is_size, read_sizes
from ckpt_tool.readers.torch_save.standins import describe, name_kind
from ckpt_tool.tensors.geometry import MOST_ELEMENTS, Shape


def read_pairs(value: Any, what: str) -> ItemsView[Any, Any]:
    """The items of a dict, none for None; FormatError for anything else."""
    if value is None:
        return {}.items()
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a {name_kind(value)}, no dict")
    return value.items()


def read_rows(value: Any, what: str) -> Sequence[Any]:
    """A list of lists or dicts, none for None; FormatError where it is none, or repeats one."""
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise FormatError(f"{what} is a {name_kind(value)}, no list")
    if len({id(row) for row in value}) < len(value):
        raise FormatError(f"{what} has one row in place of several")
    return value


def read_size(value: Any) -> int | None:
    """A size or a count; None where it is none."""
    return value if is_size(value) else None


def read_counts(value: Any, what: str) -> list[int]:
    """A list of counts, one where it is a single one, none for None; else FormatError."""
    counts = [] if value is None else [value] if isinstance(value, int) else value
    if not isinstance(counts, (list, tuple)) or not all(map(is_size, counts)):
        raise FormatError(f"{what} holds something other than counts")
    return list(counts)


def read_shapes(value: Any, what: str) -> dict[str, Shape]:
    """A dict of shapes, none for None; FormatError where it is none."""
    found: dict[str, Shape] = {}
    for name, sizes in read_pairs(value, what):
        if not isinstance(name, str):
            raise FormatError(f"{what} has a name that is no text")
        found[name] = read_sizes(sizes)
        if prod(found[name]) >= MOST_ELEMENTS:
            raise FormatError(f"{what} says that {describe(name)} is {list(found[name])}")
    return found


def read_texts(value: Any) -> dict[str, str]:
    """The pairs of texts of a dict, none where it is none."""
    pairs = value.items() if isinstance(value, dict) else ()
    return {a: b for a, b in pairs if isinstance(a, str) and isinstance(b, str)}


@dataclass(frozen=True, slots=True)
class StateDict:
    """A state dict: ``refs``, its tensors by name; ``states``: names of Transformer Engine's own.

    ``faults``: what is said of its other values.
    """

    refs: dict[str, TensorRef] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_state_dict(value: Any, what: str) -> StateDict:
    """A state dict, an empty one for None; FormatError where it is no dict."""
    state = StateDict()
    for name, found in read_pairs(value, what):
        if not isinstance(name, str):
            state.faults.append(f"a name in {what} that is no text")
        elif isinstance(found, TensorRef):
            state.refs[name] = found
        elif name.endswith("_extra_state"):
            state.states.append(name)
        else:
            state.faults.append(f"{name}: a {name_kind(found)}, no tensor")
    return state
