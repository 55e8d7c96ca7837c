"""What a run's folder holds, for those who have to choose: its steps and roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import AmbiguousError, UsageError
from ckpt_tool.common.remote.shadow import reach
from ckpt_tool.common.wording import join_words
from ckpt_tool.plans.provenance import find_role, find_run, find_run_folder
from ckpt_tool.readers import Format, list_checkpoints
from ckpt_tool.readers.find import find_tracker, list_tracked, read_tracker

#: The step that a run's tracker file names, or else the one of the highest number.
LATEST = "latest"
_LISTED = 8


@dataclass(frozen=True)
class Listed:
    """A checkpoint of a run: ``path``, to name it by, its format's row, ``step`` and ``role``.

    ``step`` and ``role`` are what folders are called; None where none is. ``config``: the folder
    with its ``config.json``, None where it has none.
    """

    path: Path
    format: Format
    step: int | None
    role: str | None
    config: Path | None


@dataclass(frozen=True)
class Run:
    """The checkpoints in a run's folder; ``is_whole``: whether all of it was looked at."""

    path: Path
    checkpoints: tuple[Listed, ...]
    is_whole: bool


def list_run(path: str | Path) -> Run:
    """The checkpoints at or below ``path``, by names of files alone.

    Raises what :func:`ckpt_tool.readers.list_checkpoints` does.
    """
    root = reach(path)
    found = list_checkpoints(root)
    located = [place.format.locate(place.path) or place.path for place in found.places]
    listed = [
        Listed(
            place.path,
            place.format,
            find_run(place.path)[1],
            find_role(at),
            place.format.config(at),
        )
        for place, at in zip(found.places, located, strict=True)
    ]
    return Run(root, tuple(listed), found.is_whole)


def find_run_of_several(path: str | Path) -> Run | None:
    """The run at ``path``, where that holds several checkpoints; None where there is one or none.

    Raises what :func:`ckpt_tool.readers.list_checkpoints` does.
    """
    run = list_run(path)
    return run if len(run.checkpoints) > 1 else None


def choose_step(path: str | Path, step: int | str) -> Path:
    """The checkpoint of ``step`` in the run at ``path``.

    ``step``: a number, or :data:`LATEST`. A model of that step is taken where nothing else is of
    it. UsageError for what is no step; AmbiguousError, with those that there are, where it is not
    there, or is there several times, as of an actor and of a critic. Raises also what
    :func:`ckpt_tool.readers.list_checkpoints` does.
    """
    wanted = parse_step(step)
    run = list_run(path)
    if not run.checkpoints:
        return run.path  # whoever opens it says what was expected
    found = keep_sharded(run.checkpoints)
    if wanted is None:
        places = list_last(run)
    else:
        places = keep_sharded(each for each in run.checkpoints if each.step == wanted)
    if not places:
        raise AmbiguousError(
            f"{run.path}: no step {wanted} is there{say_steps(found)}",
            [each.path for each in found],
            hint="Name one that is there.",
        )
    if len(places) > 1:
        roles = [each.role or each.format.title for each in places]
        at = "without a number" if places[0].step is None else f"of step {places[0].step}"
        several = f"{len(places)} checkpoints are {at}: {join_words(roles)}"
        raise AmbiguousError(f"{run.path}: {several}", [each.path for each in places])
    return places[0].path


def choose_steps(paths: Sequence[Path], step: int | str | None) -> list[Path]:
    """What :func:`choose_step` says of each of ``paths``; these themselves where none is asked."""
    return [*paths] if step is None else [choose_step(path, step) for path in paths]


def parse_step(asked: int | str) -> int | None:
    """The number of a step; None for :data:`LATEST`. UsageError for anything else."""
    text = str(asked)
    if text == LATEST:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise UsageError(
            f"`step={text!r}`: is no step", hint="Write its number, or latest for the last one."
        )
    return int(text)


def list_last(run: Run) -> list[Listed]:
    """The checkpoints of the last step: what tracker files name, else the highest number.

    All of them where no name has a number. AmbiguousError where there are several runs, or a file
    names a step that is not there.
    """
    found = _keep_tracked(run)
    last = {find_run_folder(each.path): each.path for each in found if each.step is not None}
    if len(last) > 1:
        raise AmbiguousError(f"{run.path}: several runs are below it", [*last.values()])
    most = max((each.step for each in found if each.step is not None), default=None)
    return [each for each in found if each.step == most]


def keep_sharded(found: Iterable[Listed]) -> list[Listed]:
    """Those that can be merged; all of them where none can."""
    listed = [*found]
    return [each for each in listed if each.format.merge_command] or listed


def say_steps(found: Iterable[Listed]) -> str:
    """Which steps there are, as the end of a sentence."""
    steps = sorted({each.step for each in found if each.step is not None})
    if not steps:
        return ", nor any that the name of a folder says"
    shown = [*map(str, steps)]
    if len(shown) > _LISTED:
        shown = [*shown[: _LISTED // 2], "...", *shown[-_LISTED // 2 :]]
    return f": there {'is' if len(steps) == 1 else 'are'} {join_words(shown)}"


def _keep_tracked(run: Run) -> list[Listed]:
    """The checkpoints without those of which a tracker file above them names another as the last.

    AmbiguousError where it names what is not there: some of it may be missing.
    """
    kept = keep_sharded(run.checkpoints)
    above = {folder for each in kept for folder in each.path.parents}
    for folder in (run.path, *sorted(above)):
        tracker = find_tracker(folder) if folder.is_relative_to(run.path) else None
        if tracker is None:
            continue
        named = [*list_tracked(folder)]
        last = [each for each in kept if any(each.path.is_relative_to(name) for name in named)]
        below = [each for each in kept if each.path.is_relative_to(folder)]
        if below and not last:
            said = f"{tracker.name} names {read_tracker(tracker)!r:.64}, which is not here"
            raise AmbiguousError(f"{folder}: {said}", [each.path for each in below])
        kept = [each for each in kept if each not in below or each in last]
    return kept
