"""Where folders of torch.distributed.checkpoint lie, and which of several has the metadata."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.common.regular import read_regular
from ckpt_tool.readers.base import collect
from ckpt_tool.readers.find import find


def locate_dcp(path: Path) -> Path | None:
    """The folder with ``.metadata`` at or below ``path``, or None; raises what `find` does."""
    return find(path, lambda folder: (folder / ".metadata").is_file())


def locate_dcp_part(path: Path) -> Path | None:
    """The folder with ``.metadata`` or ``*.distcp`` files, as :func:`locate_dcp` looks for it."""

    def holds(folder: Path) -> bool:
        return (folder / ".metadata").is_file() or any(folder.glob("*.distcp"))

    return find(path, holds)


def locate_torch_dist(path: Path) -> Path | None:
    """:func:`locate_dcp`, where megatron-core wrote the folder."""
    folder = locate_dcp(path)
    return folder if folder is not None and (folder / "metadata.json").is_file() else None


def locate_zarr(path: Path) -> Path | None:
    """The folder with a checkpoint in the zarr format of older megatron-core, or None."""
    folder = find(path, lambda folder: (folder / "metadata.json").is_file())
    if folder is None or b'"zarr"' not in read_regular(folder / "metadata.json", 1000):
        return None
    return folder


def refuse_zarr(folder: Path) -> NoReturn:
    """FormatError: that ``folder`` is known for what it is, and what to do with it."""
    raise FormatError(
        "a zarr checkpoint of megatron-core, which nothing reads since its 0.16",
        path=folder,
        hint="Load it with megatron-core 0.15 or older, and save it with --ckpt-format torch_dist.",
    )


def refuse_unfinished(folder: Path) -> NoReturn:
    """FormatError: that the file is not there which rank 0 writes, after all others."""
    raise FormatError(
        "*.distcp files, and no .metadata, which rank 0 writes when all ranks have saved",
        path=folder,
        hint="If rank 0 was on another node, name its folder, too. Else the save was not finished:"
        " take another step.",
    )


def find_main(folders: Sequence[Path], problems: list[Problem]) -> Path:
    """The folder with ``.metadata``, of which others may have copies."""
    having = [folder for folder in folders if (folder / ".metadata").is_file()]
    if not having:
        raise FormatError(
            "no .metadata, neither here nor in the other folders: rank 0 writes it",
            path=folders[0],
            hint="Name the folder of the first node, too.",
        )
    main, *others = having
    for path in (folder / ".metadata" for folder in others):
        with collect(problems, "unreadable", path):
            if not filecmp.cmp(main / ".metadata", path, shallow=False):
                message = f"not the one of {main}: these are of two checkpoints"
                problems.append(Problem("contradiction", str(path), message))
    return main
