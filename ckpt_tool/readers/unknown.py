"""What is said of a path where no checkpoint is: what is there instead, and what may be meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ckpt_tool.common.errors import AmbiguousError, UnknownFormatError, UsageError
from ckpt_tool.common.remote.naming import SCHEMES
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import Format

#: Files that describe a model and are no weights; one of them is enough to know it by.
_OF_A_CONFIG = ("config.json", "tokenizer.json", "tokenizer_config.json")
_SHOWN = 3
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def require_exists(path: Path) -> None:
    """UsageError where there is nothing at ``path``, with what may be meant."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder", hint=_guess(path))


def _guess(path: Path) -> str:
    """The path that was mistyped, or how to get a repository of the Hub; empty where unknown."""
    if _ADDRESS.match(str(path)):
        return f"Addresses that are read: {', '.join(f'{scheme}://' for scheme in SCHEMES)}."
    folder = path.parent
    if folder.is_dir():
        near = difflib.get_close_matches(path.name, _list_names(folder), _SHOWN)
        return f"Is it {' or '.join(str(folder / name) for name in near)}?" if near else ""
    parts = path.parts
    if len(parts) == 2 and not path.is_absolute() and "." not in parts and ".." not in parts:
        return (
            "If this is a repository of the Hub, download it first:"
            f" hf download {path} --local-dir {path.name}"
        )
    return ""


def _list_names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def refuse_unknown(path: Path, formats: Sequence[Format]) -> UnknownFormatError:
    """The error for a folder in which no checkpoint is: what it holds, what was expected."""
    names = _list_names(path) if path.is_dir() else []
    said = "no checkpoint of a known format in this folder"
    if not names:
        return UnknownFormatError(f"{said}, which is empty", path=path)
    expected = [row.files for row in formats if row.files]
    if any(name in names for name in _OF_A_CONFIG):
        said = f"{said}, only config or tokenizer of a model, without weights"
        if (above := _find_above(path, formats)) is not None:
            hint = f"The weights are above it: name {above} instead."
            return UnknownFormatError(said, path=path, hint=hint)
        return UnknownFormatError(said, path=path, expected=expected)
    more = len(names) - _SHOWN
    held = ", ".join(f"{name:.80}" for name in names[:_SHOWN])
    held += f" and {count_noun(more, 'other')}" if more > 0 else ""
    return UnknownFormatError(f"{said}, which holds {held}", path=path, expected=expected)


def _find_above(path: Path, formats: Sequence[Format]) -> Path | None:
    """The folder above ``path``, where that is a checkpoint."""
    above = path.parent if path.name not in ("", "..") else path.resolve().parent
    with suppress(OSError, AmbiguousError):
        return above if any(row.locate(above) is not None for row in formats) else None
    return None
