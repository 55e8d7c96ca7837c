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
from ckpt_tool.common.regular import say_irregular

#: What to do about a link out.
OUTSIDE = (
    "Weights may be links to anywhere; of what lies beside them, a link could have any of your"
    " files copied. If it is yours, copy the file there, or name a folder that has config and"
    " tokenizer with `config=DIR`."
)
#: The same about what is no file.
NO_FILE = (
    "Copy the file itself there (cp -rL copies what links lead to), or remove what is in its place."
)


def has_file(path: Path, named: Sequence[Path]) -> bool:
    """Whether there is a file to be read beside the weights.

    CheckpointError where something else has its name, or a link of that name leads out of all
    folders in ``named``.
    """
    if not os.path.lexists(path):
        return False
    problem = find_fault(path, named)
    if problem is not None and problem.kind == "no-file":
        raise CheckpointError(f"{path}: {problem.message}", hint=NO_FILE)
    refuse_outside([] if problem is None else [problem], named)
    return True


def find_fault(path: Path, named: Sequence[Path]) -> Problem | None:
    """What is wrong with ``path``, which is there, unless it is a regular file that may be read.

    The kind is "no-file", or "link" where it leads out of all folders in ``named``.
    """
    found = say_irregular(path)
    if found:
        return Problem("no-file", str(path), f"{found}, expected a file")
    return _find_outside(path, named)


def _find_outside(path: Path, named: Sequence[Path]) -> Problem | None:
    if is_inside(path, named):
        return None
    said = f"leads to {os.path.realpath(path)}, which is not in it"
    return Problem("link", str(path), said)


def require_inside(paths: Iterable[Path], named: Sequence[Path]) -> None:
    """CheckpointError that lists those of ``paths`` that lead out of all folders in ``named``.

    ``named``: as the user named them, links included. What is looked for beside one of them stays
    in the folder that this lies in.
    """
    refuse_outside([found for path in paths if (found := _find_outside(path, named))], named)


def refuse_outside(problems: Sequence[Problem], named: Sequence[Path]) -> None:
    """CheckpointError of what :func:`find_fault` found, links out all of it, if it did."""
    if problems:
        of_it = (place for place in named if Path(problems[0].where).is_relative_to(place))
        lead = "file leads" if len(problems) == 1 else "files lead"
        raise CheckpointError(
            f"{next(of_it, named[0])}: {len(problems)} {lead} out of it", problems, hint=OUTSIDE
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

    What is neither file nor folder is listed too. Links to folders are followed. CheckpointError
    for one that leads out of what was ``named``, or to a folder that is listed already: there might
    be no end.
    """
    if not folder.is_dir():
        return [folder] if os.path.lexists(folder) and not folder.is_file() else []
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
            if path.is_dir():
                below = os.path.realpath(path) if path.is_symlink() else f"{real}/{path.name}"
                waiting.append((path, below))
            else:
                found.append(path)
    return sorted(found)


def _require_new(place: Path, real: str, seen: set[str]) -> None:
    if real in seen:
        raise CheckpointError(
            f"{place}: a folder that is there twice",
            [Problem("link", str(place), f"leads to {real}, which is listed already")],
            hint="Copy the folder there, or remove the link.",
        )
    seen.add(real)
