"""A checkpoint of which every node has a part, on a disk of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Checkpoint, Parts, Wanted


def drop_repeats(folders: Sequence[Path]) -> list[Path]:
    """Each folder once, whichever names and links lead there."""
    return [*{os.path.realpath(folder): folder for folder in folders}.values()]


def open_parts(
    parts: Parts, title: str, found: Mapping[Path, Path | None], wanted: Wanted | None
) -> Checkpoint:
    """The checkpoint whose parts were ``found`` at or below what was named; some are there.

    ``title``: of its format, for people. FormatError where something that was named has no part.
    """
    folders = [folder for folder in found.values() if folder is not None]
    for path, folder in found.items():
        if folder is None:
            raise FormatError(
                f"nothing here of the {title} in {folders[0]}",
                path=path,
                hint=f"See what is there with: ckpt inspect {path}",
            )
    return parts.open(folders, wanted)
