"""Where a model came from, as its manifest says it: the same wherever the source lies.

There are no absolute paths in it and no times. When a run wrote an output, and of which times its
sources were, is kept in the user's cache, for that is of one machine: ``resume`` asks there whether
the sources of a complete output are still what they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from ckpt_tool.common.cache import keep_entry, read_entry
from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.remote.naming import name_places
from ckpt_tool.common.untrusted import parse_json
from ckpt_tool.readers import find_format
from ckpt_tool.readers.base import Checkpoint, ShardFile
from ckpt_tool.readers.find import drop_places
from ckpt_tool.readers.find import find_role as _find_role
from ckpt_tool.writers.places import Place

#: The folder of a step: verl and SkyRL, DeepSpeed, Megatron-LM, the Trainer, torchtitan; NeMo
#: Automodel and Lightning with the epoch before it.
_STEP = re.compile(
    r"(?:epoch[_=]?[0-9]+[_-])?(?:global_step|iter|checkpoint|step)[_=-]?([0-9]{1,18})(?:\.ckpt)?"
)
#: Names of folders that say nothing of a run by themselves.
_GENERAL = frozenset("checkpoint checkpoints ckpt ckpts weights".split())

_KIND = "written"
_MOST_ENTRIES = 64


def describe_source(checkpoint: Checkpoint) -> dict[str, object]:
    """Run, step, role, format, ranks and files of a source; null what nothing says.

    Files are called by their place in the checkpoint's folder; those that lie elsewhere, as of
    other nodes or of a base model, by their names alone.
    """
    return {
        "run": find_run(checkpoint.path)[0],
        "step": find_step(checkpoint),
        "role": find_role(checkpoint.path),
        "format": checkpoint.format,
        "world_size": checkpoint.world_size,
        "files": [
            {"name": _name_within(checkpoint.path, file), "bytes": file.bytes}
            for file in checkpoint.files
        ],
    }


def find_step(checkpoint: Checkpoint) -> int | None:
    """Of training: as its files say, else as a folder's name does; None where neither does."""
    return checkpoint.step if checkpoint.step is not None else find_run(checkpoint.path)[1]


def say_source(checkpoint: Checkpoint) -> str:
    """What it was taken for, of which step and role, and where it lies, in words."""
    said = name_source(checkpoint.format, find_step(checkpoint), find_role(checkpoint.path))
    return f"{said} in {checkpoint.path}"


def name_source(name: str, step: int | None, role: str | None) -> str:
    """What a checkpoint of the format ``name`` is called, with what is known of it.

    >>> name_source("fsdp", 100, "actor"), name_source("fsdp", None, None)
    ('FSDP checkpoint of step 100 (actor)', 'FSDP checkpoint')
    """
    of_step = "" if step is None else f" of step {step}"
    return f"{find_format(name).title}{of_step}{f' ({role})' if role else ''}"


def find_run(path: Path) -> tuple[str | None, int | None]:
    """The name of the run, and the step, in which a checkpoint lies; None where no name says it.

    >>> find_run(Path("/data/qwen-grpo/global_step_100/actor"))
    ('qwen-grpo', 100)
    >>> find_run(Path("/data/seven/checkpoints/iter_0000020"))
    ('seven/checkpoints', 20)
    """
    found = _find_step(path)
    if found is None:
        return None, None
    names, at = found.path.parts[1:], len(found.path.parts) - 1
    start = at
    while start and (start == at or names[start] in _GENERAL):
        start -= 1
    return "/".join(names[start:at]) or None, found.step


def find_run_folder(path: Path) -> Path | None:
    """The folder in which the step lies that a checkpoint is of; None where no name says it."""
    found = _find_step(path)
    return None if found is None else found.path


def find_role(path: Path) -> str | None:
    """Whose weights lie at ``path``, as a folder in the step is called, or the last one.

    >>> find_role(Path("/home/actor/run/global_step_100/critic")), find_role(Path("/a/actor/run"))
    ('critic', None)
    """
    found = _find_step(path)
    if found is not None:
        return _find_role(found.names)
    return _find_role(drop_places(path.absolute().parts)[-1:])


class _Step(NamedTuple):
    """``path`` of the run, the ``step`` in it, and the ``names`` of the folders in that."""

    path: Path
    step: int
    names: tuple[str, ...]


def _find_step(path: Path) -> _Step | None:
    as_named = path.absolute()
    real = Path(os.path.realpath(path))
    places = [real] if ".." in as_named.parts else [as_named, real]
    return next((found for found in map(_split_step, places) if found is not None), None)


def _split_step(path: Path) -> _Step | None:
    names = path.parts
    at = next((n for n in reversed(range(1, len(names))) if _STEP.fullmatch(names[n])), None)
    matched = None if at is None else _STEP.fullmatch(names[at])
    if at is None or matched is None:
        return None
    inside = names[at + 1 :]
    while at > 1 and _STEP.fullmatch(names[at - 1]):  # DeepSpeed's step in that of the Trainer
        at -= 1
    return _Step(Path(*names[:at]), int(matched[1]), inside)


def _name_within(folder: Path, file: ShardFile) -> str:
    path = Path(file.path)
    if path != folder and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return path.name


def keep_times(out: Place, timed: str, checkpoint: Checkpoint, seconds: float) -> None:
    """Note when ``out`` was written, and of what; ``timed``: the plan's fingerprint with times."""
    entry = {
        "output": str(out),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "sources": [[file.path, file.bytes, file.mtime_ns] for file in checkpoint.files],
        "plan": timed,
    }
    body = name_places(json.dumps(entry)).encode()
    keep_entry(_KIND, _make_key(out), body, _MOST_ENTRIES)


def are_as_noted(out: Place, timed: str) -> bool:
    """Whether ``out`` was written here of sources of these sizes and times."""
    body = read_entry(_KIND, _make_key(out))
    try:
        return body is not None and bool(parse_json(body, str(out))["plan"] == timed)
    except (FormatError, KeyError, TypeError):
        return False


def _make_key(out: Place) -> str:
    return hashlib.sha256(os.fsencode(str(out))).hexdigest()
