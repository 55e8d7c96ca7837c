"""What a run's folder holds: its steps and roles, each of them a checkpoint of its own.

Whatever a trainer calls its folders (``checkpoint-500/``, ``outputs/checkpoint/step-10/``,
``epoch_0_step_20/model/``): what lies above a checkpoint is walked, and a checkpoint is not, but
for a model, below which the Trainer has its steps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import AmbiguousError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import Format
from ckpt_tool.readers.find import find_tracker, read_tracker

#: A folder of runs, a run, ``checkpoints/``, a step, a role, its weights.
_MOST_LEVELS = 6
_MOST_FOLDERS = 5_000
#: What is saved beside a model, in formats that models are saved in, too.
_STATE = re.compile(
    r"(?:optim|optimizer|lr_scheduler|scheduler|dataloader|rng)(?:_states?)?(?:_\d+)?"
)


@dataclass(frozen=True)
class Place:
    """A checkpoint in a run's folder: ``path``, to name it by, and the row of its format."""

    path: Path
    format: Format


@dataclass(frozen=True)
class Found:
    """All ``places`` below a folder, in the order of their names and numbers.

    ``is_whole``: whether all of it was looked at: not too many folders, and each can be read.
    """

    places: tuple[Place, ...]
    is_whole: bool = True


def list_places(root: Path, formats: Sequence[Format]) -> Found:
    """The checkpoints at or below ``root``, by names of files alone.

    One for each step and role; where a file says which step is the last, the others all the same.
    Below a model, as the Trainer leaves its last one above its steps, are those that are merged,
    in folders with a number; what others hold (``original/``) is that model once more.
    OSError where ``root`` cannot be read.
    """
    places: list[Place] = []
    is_hidden = False
    waiting, seen = [(root, 0, False)], {os.path.realpath(root)}
    for _ in range(_MOST_FOLDERS):
        if not waiting:
            break
        folder, level, in_model = waiting.pop()
        try:
            place = _locate(folder, formats)
            is_model = place is not None and place.format.names == "hub"
            is_end = (place is not None and not is_model) or level == _MOST_LEVELS
            below = [] if is_end else [*_list_folders(folder, seen)]
        except PermissionError:
            if folder == root:
                raise
            is_hidden = True
            continue
        if place is not None and (place.format.merge_command or not in_model):
            places.append(place)
        steps = (each for each in reversed(below) if not is_model or each.name[-1].isdecimal())
        waiting += [(each, level + 1, in_model or is_model) for each in steps]
    if not places and (place := _locate(root, formats, tracked=True)) is not None:
        places.append(place)
    return Found(tuple(places), is_whole=not waiting and not is_hidden)


def find_only(root: Path, formats: Sequence[Format]) -> Path:
    """The only checkpoint below ``root``, or ``root`` where there is none.

    AmbiguousError where there are several, or where a file says that the last is another one.
    """
    found = list_places(root, formats)
    paths = [place.path for place in found.places]
    tracker = find_tracker(root)
    if paths and tracker is not None:
        said = f"{tracker.name} names {read_tracker(tracker)!r:.64}, which is not here"
        raise AmbiguousError(f"{root}: {said}", paths)
    if len(paths) > 1:
        more = "" if found.is_whole else ", and folders that were not looked at"
        models = [place.path for place in found.places if not place.format.merge_command]
        if 0 < len(models) < len(paths):
            more = f", with {count_noun(len(models), 'model')} among them{more}"
        said = f"{root}: {len(paths)} checkpoints are below it{more}"
        raise AmbiguousError(said, paths, has_steps=True, models=models)
    return paths[0] if paths else root


def _locate(folder: Path, formats: Sequence[Format], *, tracked: bool = False) -> Place | None:
    """The checkpoint that ``folder`` is or holds; None where it holds several, or a run's last."""
    if not tracked and find_tracker(folder) is not None:
        return None
    try:
        return next((Place(folder, row) for row in formats if row.locate(folder) is not None), None)
    except AmbiguousError:
        return None


def _list_folders(folder: Path, seen: set[str]) -> Iterator[Path]:
    """The folders in one that may hold models, each once, whichever links lead there."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        # A link to another step of the run is listed as the folder that it leads to.
        found = sorted(entries, key=lambda entry: (entry.is_symlink(), _order(entry.name)))
        for entry in found:
            real = os.path.realpath(entry.path)
            hidden = entry.name.startswith(".") or _STATE.fullmatch(entry.name)
            if entry.is_dir() and not hidden and real not in seen:
                seen.add(real)
                yield folder / entry.name


def _order(name: str) -> list[tuple[int, str]]:
    """Names in their order, numbers in theirs: ``step-9`` before ``step-10``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part[:18]), "") if part.isdecimal() else (0, part) for part in parts]
