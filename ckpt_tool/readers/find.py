"""Where, in what a run leaves behind, its checkpoint lies.

verl: ``global_step_N/{actor,critic}/``, of Megatron with ``dist_ckpt/``, ``model/dist_ckpt/`` or
``model/mp_rank_*/`` in it; its tracker file names the last step. Megatron-LM: ``iter_NNNNNNN/`` or
``release/``, as its tracker file says. accelerate: ``pytorch_model_fsdp_0/``. SkyRL: ``policy/``
and ``critic/`` in the step that its tracker names. NeMo: ``weights/``, NeMo-RL with a step below.
DeepSpeed: ``global_stepN/``, or what else ``latest`` names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ckpt_tool.common.errors import AmbiguousError
from ckpt_tool.common.regular import read_regular
from ckpt_tool.common.remote.shadow import CONFIG_FOLDERS
from ckpt_tool.common.wording import join_words

_TRACKERS = ("latest_checkpointed_iteration.txt", "latest_ckpt_global_step.txt")
_LATEST = "latest"
_ROLES = {"actor": "an actor", "policy": "a policy", "critic": "a critic",
          "ref": "a reference"}  # fmt: skip
_ACCELERATE = "pytorch_model_fsdp_0"
_BELOW = ("", "dist_ckpt", "model/dist_ckpt", "model", "adapter_checkpoint", "weights", _ACCELERATE)
_ITERATION = re.compile(r"iter_[0-9]{7,}")
#: A run, its step, a role in it. A link that leads back up would be followed for ever.
_MOST_LEVELS = 4


def find(path: Path, holds: Callable[[Path], bool]) -> Path | None:
    """The first folder at or below ``path`` for which ``holds`` is true, or None.

    AmbiguousError where there is more than one role to choose from, like an actor and a critic.
    """
    return _find(path, holds, _MOST_LEVELS)


def _find(path: Path, holds: Callable[[Path], bool], levels: int) -> Path | None:
    if not levels or not path.is_dir():
        return None
    for folder in (path / name for name in _BELOW):
        if folder.is_dir() and holds(folder):
            return folder
    roles = {
        role: place
        for role in _ROLES
        if (place := _find(path / role, holds, levels - 1)) is not None
    }
    if len(roles) > 1:
        raise AmbiguousError(
            f"{path}: holds {join_words([_ROLES[role] for role in roles])}",
            [path / role for role in roles],
        )
    if roles:
        return next(iter(roles.values()))
    steps = (_find(step, holds, levels - 1) for step in list_tracked(path))
    return next((step for step in steps if step is not None), None)


def locate_config(folder: Path, *, beside: bool = False) -> Path | None:
    """The folder with config and tokenizer: in or at ``folder``, or ``beside`` it.

    Also where its config is no file: whoever reads it says so.
    """
    places = [folder / name for name in CONFIG_FOLDERS] + [folder]
    if beside:
        places += [folder.parent / name for name in CONFIG_FOLDERS]
        places += [folder.parent] if folder.name == _ACCELERATE else []
    return next((place for place in places if os.path.lexists(place / "config.json")), None)


def locate_config_beside(folder: Path) -> Path | None:
    """What :func:`locate_config` finds in, at or beside ``folder``."""
    return locate_config(folder, beside=True)


def locate_first_config(folders: Iterable[Path], *, beside: bool = False) -> Path | None:
    """What :func:`locate_config` finds for the first of ``folders`` that has it."""
    found = (locate_config(folder, beside=beside) for folder in folders)
    return next((place for place in found if place is not None), None)


def find_tracker(path: Path) -> Path | None:
    """The file in ``path`` that says which of its steps is the last; None where there is none."""
    found = next((path / name for name in _TRACKERS if (path / name).is_file()), None)
    if found is not None:
        return found
    named = find_latest(path)
    return path / _LATEST if named and (path / named).is_dir() else None


def find_latest(path: Path) -> str:
    """The folder that DeepSpeed's file ``latest`` in ``path`` names; empty where it names none.

    Others call files and folders so, too.
    """
    latest = path / _LATEST
    named = read_tracker(latest) if latest.is_file() else ""
    return named if named.isprintable() and Path(named).name == named else ""


def read_tracker(tracker: Path) -> str:
    """What it says: a number, or ``release``; anything, where it is damaged."""
    return read_regular(tracker, 256).decode("utf-8", "replace")[:64].strip()


def find_role(names: Sequence[str]) -> str | None:
    """Whose weights these are, as one of the folders on the way to them is called."""
    return next((name for name in reversed(names) if name in _ROLES), None)


def drop_places(names: Sequence[str]) -> Sequence[str]:
    """Names of folders without the last ones that say only where in a checkpoint weights lie."""
    while names and any(names[-1] in below.split("/") for below in _BELOW if below):
        names = names[:-1]
    return names


def list_tracked(path: Path) -> Iterator[Path]:
    """The folders that the tracker file in ``path`` may mean; without one, the only step there."""
    tracker = find_tracker(path)
    if tracker is None:
        places = (path, path / "weights")
        steps = [
            s for place in places for s in place.glob("iter_*") if _ITERATION.fullmatch(s.name)
        ]
        yield from steps if len(steps) == 1 else ()
        return
    named = read_tracker(tracker)
    if tracker.name == _LATEST:
        yield path / named
    elif re.fullmatch(r"[0-9]{1,18}", named):
        yield path / f"iter_{int(named):07d}"
        yield path / f"global_step_{named}"
    elif named == "release":
        yield path / "release"
