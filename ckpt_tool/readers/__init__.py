"""Shard loading: any known folder or file as a :class:`~ckpt_tool.readers.base.Checkpoint`.

:data:`.formats.FORMATS` is the table of what is known; ``README.md`` beside this file says of each
format what is on disk, who writes it, and what is proven of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.remote.shadow import reach
from ckpt_tool.readers import formats
from ckpt_tool.readers.base import Checkpoint, Format, Wanted
from ckpt_tool.readers.counting import watch_reading
from ckpt_tool.readers.formats import find_format, list_titles
from ckpt_tool.readers.runs import Found, find_only, list_places
from ckpt_tool.readers.spread import open_parts
from ckpt_tool.readers.together import read_together
from ckpt_tool.readers.unknown import refuse_unknown, require_exists

__all__ = [
    "Checkpoint",
    "Format",
    "find_format",
    "list_checkpoints",
    "list_titles",
    "open_checkpoint",
    "open_folders",
    "read_together",
]


def open_checkpoint(
    path: str | Path, wanted: Wanted | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Read the metadata of the checkpoint at ``path``, whatever its format.

    ``path``: a folder of a checkpoint, a folder of a run with one below it, or a single file; or
    the address of one, like ``s3://bucket/run``.
    ``wanted``: told a tensor's name, says whether to look at it; asked only in folders of
    torch.distributed.checkpoint, where each block has a place of its own. The other tensors are
    in the result's ``left_out``. By default every tensor is looked at. ``progress``: told of files.

    Returns a mapping from FQN to lazy tensor; shapes and dtypes are those of whole tensors, and no
    element is read before :meth:`~ckpt_tool.tensors.lazy.LazyTensor.read`. Damage within a known
    format raises nothing here: it is in the result's ``problems``.

    Raises UsageError where there is nothing at ``path``, AmbiguousError where several checkpoints
    are below it, as an actor and a critic, or steps of which no file says which is the last;
    UnknownFormatError where nothing there is known; UnsafeContentError where a pickle asks for
    code; OSError where a folder cannot be read.

    >>> import tempfile, torch
    >>> from ckpt_tool.readers import open_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"norm.weight": torch.arange(6.0)}, f"{folder}/model.pt")
    ...     checkpoint = open_checkpoint(f"{folder}/model.pt")
    ...     weight = checkpoint["norm.weight"]
    ...     print(checkpoint.format, checkpoint.problems, list(checkpoint))
    ...     print(weight.shape, weight.dtype, weight.narrow(0, 2, 3).read())
    torch () ['norm.weight']
    (6,) float32 tensor([2., 3., 4.])
    """
    path = reach(path)
    require_exists(path)
    found = _open(path, wanted, progress)
    if found is None:
        found = _open(find_only(path, formats.FORMATS), wanted, progress)
    if found is None:
        raise refuse_unknown(path, formats.FORMATS)
    return replace(found, named=(path,))


def _open(path: Path, wanted: Wanted | None, progress: Progress | None) -> Checkpoint | None:
    for row in formats.FORMATS:
        place = row.locate(path)
        if place is not None:
            with watch_reading(row.name, [place], progress):
                if wanted is None or row.open_wanted is None:
                    return row.open(place)
                return row.open_wanted(place, wanted)
    return None


def list_checkpoints(path: str | Path) -> Found:
    """The checkpoints at or below ``path``, by names of files alone: a run's steps and roles.

    UsageError where there is nothing; OSError where a folder cannot be read.
    """
    root = reach(path)
    require_exists(root)
    return list_places(root, formats.FORMATS)


def open_folders(
    paths: Sequence[str | Path], wanted: Wanted | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Read the metadata of one checkpoint of which every node has a part in a folder of its own.

    ``paths``: one or more, each the folder of a node's files, or a folder of a run above it: of
    FSDP ranks, of torch.distributed.checkpoint (``.metadata`` in one of them), or of shards of a
    Hugging Face model. One path, ``wanted`` and ``progress`` are taken as by
    :func:`open_checkpoint`. What is in none of the folders is in the result's ``problems``.

    Raises UsageError where there is nothing at a path, AmbiguousError where there is an actor and a
    critic to choose from; FormatError where one has no part of what the others have a part of;
    UnsafeContentError where a pickle asks for code.
    """
    if len(paths) == 1:
        return open_checkpoint(paths[0], wanted, progress)
    named = [reach(path) for path in paths]
    for path in named:
        require_exists(path)
    for row in formats.FORMATS:
        found = {path: row.parts.locate(path) for path in named} if row.parts else {}
        if row.parts and any(found.values()):
            with watch_reading(row.name, found.values(), progress):
                opened = open_parts(row.parts, row.title, found, wanted)
            return replace(opened, named=tuple(named))
    raise FormatError(
        "nothing here that can be one checkpoint with what is in another folder",
        path=paths[0],
        hint=f"See what is there with: ckpt inspect {paths[0]}",
    )
