"""Links in folders from others: what is read or copied beside the weights stays in what was named.

Whoever makes a checkpoint could else have any file of its reader copied, and uploaded. A link is
followed where it stays in a folder that the user named, and where it is one of the Hub's cache:
from ``models--*/snapshots/*`` to the ``blobs`` of the same repository. Weights may lie anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, Problem


def require_inside(paths: Iterable[Path], named: Sequence[Path]) -> None:
    """CheckpointError that lists those of ``paths`` that lead out of all folders in ``named``.

    ``named``: as the user named them, links included. What is looked for beside one of them stays
    in the folder that this lies in.
    """
    outside = [path for path in paths if not is_inside(path, named)]
    problems = [
        Problem("link", str(path), f"leads to {os.path.realpath(path)}, which is not in it")
        for path in outside
    ]
    if problems:
        of_it = (place for place in named if outside[0].is_relative_to(place))
        lead = "file leads" if len(problems) == 1 else "files lead"
        raise CheckpointError(
            f"{next(of_it, named[0])}: {len(problems)} {lead} out of it",
            problems,
            hint="Weights may be links to anywhere; of what lies beside them, a link could have any"
            " of your files copied. If it is yours, copy the file there, or name a folder that has"
            " config and tokenizer with `config=DIR`.",
        )


def is_inside(path: Path, named: Sequence[Path]) -> bool:
    """Whether a file is in one of these folders, links followed."""
    real, folder = (Path(os.path.realpath(place)) for place in (path, path.parent))
    roots = list(_list_roots(path, named))
    if any(real.is_relative_to(root) for root in roots):
        return True
    blobs = _find_blobs(folder)
    return (
        blobs is not None
        and real.is_relative_to(blobs)
        and any(folder.is_relative_to(root) for root in roots)
    )


def _list_roots(path: Path, named: Sequence[Path]) -> Iterator[Path]:
    beside = True
    for place in named:
        folder = place if place.is_dir() else place.parent
        yield Path(os.path.realpath(folder))
        beside = beside and not path.absolute().is_relative_to(folder.absolute())
    for place in named if beside else ():
        if path.absolute().is_relative_to(place.parent.absolute()):
            yield Path(os.path.realpath(place.parent))


def _find_blobs(folder: Path) -> Path | None:
    """Where the Hub's cache has the files of a snapshot, if the folder is in one."""
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            return place.parent.parent / "blobs"
    return None


def list_below(folder: Path, named: Sequence[Path]) -> list[Path]:
    """The files in a folder and the folders in it, sorted; none where there is no such folder.

    Links to folders are followed. CheckpointError for one that leads out of what was ``named``, or
    to a folder that is listed already: there might be no end.
    """
    if not folder.is_dir():
        return []
    require_inside([folder], named)
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [(folder, os.path.realpath(folder))]
    while waiting:
        place, real = waiting.pop()
        _require_new(place, real, seen)
        for path in place.iterdir():
            if path.is_symlink():
                require_inside([path], named)
            if path.is_file():
                found.append(path)
            elif path.is_dir():
                below = os.path.realpath(path) if path.is_symlink() else f"{real}/{path.name}"
                waiting.append((path, below))
    return sorted(found)


def _require_new(place: Path, real: str, seen: set[str]) -> None:
    if real in seen:
        raise CheckpointError(
            f"{place}: a folder that is there twice",
            [Problem("link", str(place), f"leads to {real}, which is listed already")],
            hint="Copy the folder there, or remove the link.",
        )
    seen.add(real)
