"""The command that was typed, with another path in the place of one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def retype(path: str, typed: Sequence[str]) -> str:
    """The words ``typed`` with ``path`` for the first that lies above it; ``path`` if none does.

    >>> retype("run/step-2/actor", ["/usr/bin/ckpt", "merge", "run/", "out dir", "--json"])
    "ckpt merge run/step-2/actor 'out dir' --json"
    >>> retype("run/step-2", ["pytest"])
    'run/step-2'
    """
    above = {Path(path), *Path(path).parents}
    for at, word in enumerate(typed[1:], 1):
        if word and Path(word) in above:
            return shlex.join(["ckpt", *typed[1:at], path, *typed[at + 1 :]])
    return path
