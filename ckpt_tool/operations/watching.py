"""Which steps of a run are finished while it goes on: told by its tracker file, or by waiting.

A step that a tracker file names is finished, for the file is written after it. It may be of an
earlier run that is being repeated, so it must not be older than what is in the step. Any other step
is finished if no file in its folder changed between two looks, and its files are a whole
checkpoint: archives and indices end with what makes them readable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ckpt_tool.common.errors import CkptError, StoreError
from ckpt_tool.common.remote.shadow import look_again
from ckpt_tool.operations.runs import Listed, list_run
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.find import find_tracker, list_tracked

#: Looks, one after the other, at a store that is away: each takes half a minute.
_MOST_OUTAGES = 20

#: Size and time of every file of a checkpoint, by its path.
Signature = dict[str, tuple[int, int]]


class Watch:
    """The steps below ``root`` that were not handed out yet.

    ``numbers``: only these; None: any. ``only_last``: of those that are finished at a time, only
    the one of the highest number; what is below one that was handed out is passed over.
    """

    def __init__(self, root: Path, numbers: frozenset[int] | None, *, only_last: bool) -> None:
        self._root = root
        self._numbers = numbers
        self._only_last = only_last
        self._seen: dict[Path, Signature] = {}
        self._done: dict[Path, Signature | None] = {}
        self._steps: set[int] = set()
        self._has_looked, self._outages = False, 0

    @property
    def is_over(self) -> bool:
        """Whether all that were asked for have been handed out, and did not fail."""
        return self._numbers is not None and self._numbers <= self._steps

    def look(self) -> list[Listed]:
        """Those that are finished now; none where a folder went meanwhile, or a store is away."""
        try:
            ready = [each for each in self.list_wanted() if self._is_finished(each)]
        except FileNotFoundError:
            if not self._root.is_dir():
                raise
            return []
        except StoreError:
            self._outages += 1
            if not self._has_looked or self._outages > _MOST_OUTAGES:
                raise
            return []
        self._has_looked, self._outages = True, 0
        if self._only_last and ready:
            most = max(each.step or 0 for each in ready)
            ready = [each for each in ready if each.step == most]
        return ready

    def note(self, listed: Listed, *, has_failed: bool) -> None:
        """What became of one: it is tried again if it failed, and is another than it was then."""
        self._done[listed.path] = take_signature(listed.path) if has_failed else None
        if not has_failed and listed.step is not None:
            self._steps.add(listed.step)

    def list_wanted(self) -> Iterator[Listed]:
        """Those that were not handed out yet, finished or not."""
        self._root = look_again(self._root)
        for each in list_run(self._root).checkpoints:
            if each.step is None or not each.format.merge_command:
                continue
            if self._numbers is not None and each.step not in self._numbers:
                continue
            if self._only_last and each.step < max(self._steps, default=0):
                continue
            if each.path not in self._done or self._done[each.path] is not None:
                yield each

    def _is_finished(self, listed: Listed) -> bool:
        found = take_signature(listed.path)
        before, self._seen[listed.path] = self._seen.get(listed.path), found
        if self._done.get(listed.path) == found:
            return False
        if is_named_last(listed, self._root, found):
            return True
        return found == before and _is_whole(listed.path)


def is_named_last(listed: Listed, root: Path, found: Signature) -> bool:
    """Whether a tracker file in ``root`` or below names the step, and was written after it."""
    newest = max((time for _, time in found.values()), default=0)
    for folder in (root, *listed.path.parents):
        if not folder.is_relative_to(root):
            continue
        tracker = find_tracker(folder)
        if tracker is None or tracker.stat().st_mtime_ns < newest:
            continue
        if any(listed.path.is_relative_to(named) for named in list_tracked(folder)):
            return True
    return False


def take_signature(folder: Path) -> Signature:
    """Of all files at or below ``folder``; one that goes meanwhile is left out."""
    found: Signature = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                continue
            found[path] = stat.st_size, stat.st_mtime_ns
    return found


def _is_whole(path: Path) -> bool:
    """Whether its metadata can be read, and nothing is missing by it."""
    try:
        return not open_checkpoint(path).problems
    except (CkptError, OSError):
        return False
