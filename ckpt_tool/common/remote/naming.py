"""Local folders that stand for what lies elsewhere, called by their addresses.

Nobody else has to know that a path stands for an address: whoever shows or keeps a text has it
spelled here.
"""

from __future__ import annotations

import re

#: What an address begins with, and what its first part is called.
SCHEMES = {
    "s3": "bucket",
    "gs": "bucket",
    "az": "container",
    "hf": "repository",
    "http": "host",
    "https": "host",
}

_roots: list[tuple[str, re.Pattern[str]]] = []  # one at most


def set_root(root: str) -> None:
    """From now on, ``ROOT/NUMBER/SCHEME/...`` stands for ``SCHEME://...``."""
    schemes = "|".join(SCHEMES)
    _roots[:] = [(root, re.compile(rf"{re.escape(root)}/[0-9]+/({schemes})/"))]


def find_root() -> str:
    """The folder in which all those are that stand for addresses; empty where there is none."""
    return _roots[0][0] if _roots else ""


def name_places(text: str) -> str:
    """``text`` with addresses in the place of the paths that stand for them."""
    for root, pattern in _roots:
        if root in text:
            text = pattern.sub(r"\1://", text)
    return text
