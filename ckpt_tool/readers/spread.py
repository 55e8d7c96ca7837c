"""A checkpoint of which every node has a part, on a disk of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Checkpoint, Parts, Wanted


def drop_repeats(folders: Sequence[Path]) -> list[Path]:
    """Each folder once, whichever names and links lead there."""
    return [*{os.path.realpath(folder): folder for folder in folders}.values()]


def open_parts(
    parts: Parts, title: str, paths: Sequence[Path], wanted: Wanted | None
) -> Checkpoint:
    """The checkpoint whose parts are at or below ``paths``; ``title``: of its format, for people.

    FormatError where one of them has no part.
    """
    found = {path: parts.locate(path) for path in paths}
    folders = [folder for folder in found.values() if folder is not None]
    for path, folder in found.items():
        if folder is None:
            raise FormatError(
                f"nothing here of the {title} in {folders[0]}",
                path=path,
                hint=f"See what is there with: ckpt inspect {path}",
            )
    return replace(parts.open(folders, wanted), named=tuple(paths))
