"""What classes of transformers want of a folder of weights, kept from one merge to the next.

The same run's next step has the same config, and finding out takes seconds. An entry of the user's
cache (:mod:`ckpt_tool.common.cache`) is one JSON object, named by a digest of all that it follows
from: the config as it is written, the class, what is installed. It is read as data, and says no
more than names, shapes and dtypes.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ckpt_tool.common.cache import keep_entry, read_entry
from ckpt_tool.common.errors import CkptError
from ckpt_tool.common.untrusted import parse_json
from ckpt_tool.common.version import __version__
from ckpt_tool.plans.checks.wanted import Shapes, Wanted

#: What decides what a class wants, besides its config.
_PACKAGES = ("transformers", "accelerate", "torch")

#: Another one where what is said of the same model changes.
_FORM = "4"

#: Entries of a model of a thousand tensors take 60 kB; the oldest go.
_MOST_ENTRIES = 256
_KIND = "wanted"


def make_key(config: bytes, architecture: str, form: str = "") -> str:
    """The name of the entry for a ``config.json`` and a class, with what is installed now.

    ``form``: which of the forms that the class opens it is about, where there are several.
    """
    parts = [__version__, _FORM, architecture, form, *map(_describe_package, _PACKAGES)]
    digest = hashlib.sha256(config)
    for part in parts:
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def read_wanted(key: str) -> Wanted | None:
    """The entry of this name; None where there is none that is sound."""
    body = read_entry(_KIND, key)
    try:
        return None if body is None else make_wanted(parse_json(body, key))
    except (CkptError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep_wanted(key: str, wanted: Wanted) -> None:
    """Write the entry, whole or not at all; nothing where that cannot be done."""
    body = json.dumps(asdict(wanted), separators=(",", ":")).encode()
    keep_entry(_KIND, key, body, _MOST_ENTRIES)


def _describe_package(name: str) -> str:
    """Its version, and when it was installed: a copy that is worked on changes without one."""
    try:
        found = distribution(name)
        place = Path(str(found.locate_file(name)))
        return f"{name} {found.version} {place} {place.stat().st_mtime_ns}"
    except (PackageNotFoundError, OSError):
        return name


def make_wanted(entry: Any) -> Wanted:
    """What JSON made of one; ValueError, TypeError and the like where it is something else."""
    return Wanted(
        str(entry["architecture"]),
        str(entry["library"]),
        _make_shapes(entry["shapes"]),
        _make_shapes(entry["tied"]),
        {str(name): str(dtype) for name, dtype in entry["dtypes"].items()},
        tuple(map(_make_pattern, entry["overlooked"])),
    )


def _make_pattern(found: Any) -> str:
    try:
        re.compile(found)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(found) from error
    return str(found)


def _make_shapes(found: Any) -> Shapes:
    return {name: tuple(map(_make_size, shape)) for name, shape in found.items()}


def _make_size(found: Any) -> int:
    if type(found) is not int:
        raise TypeError(found)
    return found
