"""Tensors by other names, where no two may get one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_doing

T = TypeVar("T")


def rename_all(tensors: Mapping[str, T], rename: Callable[[str], str]) -> dict[str, T]:
    """What is said of tensors, by the names that ``rename`` gives these, in the same order.

    MappingError lists each that gets the name of one before it, and that one, by their old names.
    """
    found: dict[str, T] = {}
    first: dict[str, str] = {}
    twice = []
    for old, tensor in tensors.items():
        name = rename(old)
        if name in found:
            both = f", both {name}" if name not in (old, first[name]) else ""
            twice.append(f"{old}: also {first[name]}{both}")
            continue
        found[name], first[name] = tensor, old
    if twice:
        said = f"{count_doing(len(twice), 'tensor', 'get')} a name that another one has"
        raise MappingError(said, twice)
    return found
