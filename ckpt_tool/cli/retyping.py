"""The command that was typed, with another path in the place of one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

_STEP = "--step"


def retype(path: str, typed: Sequence[str]) -> str:
    """The words ``typed`` with ``path`` for the first that lies above it; ``path`` if none does.

    Without ``--step``, which chose among what the path now names.

    >>> retype("run/step-2/actor", ["/usr/bin/ckpt", "merge", "run/", "out dir", "--step", "2"])
    "ckpt merge run/step-2/actor 'out dir'"
    >>> retype("run/step-2", ["pytest"])
    'run/step-2'
    """
    words, above = [*_drop_step(typed[1:])], {Path(path), *Path(path).parents}
    for at, word in enumerate(words):
        if word and Path(word) in above:
            return shlex.join(["ckpt", *words[:at], path, *words[at + 1 :]])
    return path


def retype_last(typed: Sequence[str]) -> str:
    """The words ``typed``, asking for the last step.

    >>> retype_last(["/usr/bin/ckpt", "merge", "run", "out"])
    'ckpt merge run out --step latest'
    """
    return shlex.join(["ckpt", *_drop_step(typed[1:]), _STEP, "latest"])


def _drop_step(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        if word == _STEP:
            next(rest, None)
        elif not word.startswith(f"{_STEP}="):
            yield word
