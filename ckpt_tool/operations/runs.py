"""What a run's folder holds, for those who have to choose: its steps and roles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.plans.provenance import find_run
from ckpt_tool.readers import Format, list_checkpoints
from ckpt_tool.readers.find import find_role


@dataclass(frozen=True)
class Listed:
    """A checkpoint of a run: ``path``, to name it by, its format's row, ``step`` and ``role``.

    ``step`` and ``role`` are what folders are called; None where none is.
    """

    path: Path
    format: Format
    step: int | None
    role: str | None


@dataclass(frozen=True)
class Run:
    """The checkpoints in a run's folder; ``is_whole``: whether all of it was looked at."""

    path: Path
    checkpoints: tuple[Listed, ...]
    is_whole: bool


def find_run_of_several(path: str | Path) -> Run | None:
    """The run at ``path``, where that holds several checkpoints; None where there is one or none.

    Raises what :func:`ckpt_tool.readers.list_checkpoints` does.
    """
    root = Path(path)
    found = list_checkpoints(root)
    if len(found.places) < 2:
        return None
    listed = [
        Listed(
            place.path,
            place.format,
            find_run(place.path)[1],
            find_role(place.path.relative_to(root)),
        )
        for place in found.places
    ]
    return Run(root, tuple(listed), found.is_whole)
