"""Local folders that stand for what lies elsewhere, called by their addresses.

Nobody else has to know that a path stands for an address: whoever shows or keeps a text has it
spelled here.
"""

from __future__ import annotations

import os
import re

from ckpt_tool.common.remote.address import SCHEMES, Address

_roots: list[tuple[str, re.Pattern[str]]] = []


def add_root(root: str) -> None:
    """From now on, ``ROOT/SCHEME/...`` stands for ``SCHEME://...``."""
    schemes = "|".join(SCHEMES)
    _roots.append((root, re.compile(rf"{re.escape(root)}/({schemes})(/|$)")))


def name_places(text: str) -> str:
    """``text`` with addresses in the place of the paths that stand for them."""
    for root, pattern in _roots:
        if root in text:
            text = pattern.sub(r"\1://", text)
    return text


def find_address(path: str | os.PathLike[str]) -> Address | None:
    """The address that a path stands for, or is; None where it is neither."""
    return Address.parse(name_places(os.fspath(path)))
