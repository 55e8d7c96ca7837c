"""``ckpt verify OUT``: is a folder what ckpt-tool wrote there, by its own manifest."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import Team, join_team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.remote.shadow import reach
from ckpt_tool.common.wording import add_article
from ckpt_tool.plans.holding import hold_folder
from ckpt_tool.plans.manifest import MANIFEST_NAME
from ckpt_tool.readers import formats, list_checkpoints
from ckpt_tool.readers.unknown import refuse_unknown, require_exists


@dataclass(frozen=True)
class FolderResult:
    """A folder held against its manifest.

    ``path``: the folder. ``num_files``, ``total_bytes``: what the manifest lists. ``missing``:
    files of it that are not there; ``unexpected``: that are there and not listed; ``different``:
    of other bytes, each with how it differs. ``version``: of ckpt-tool, which wrote it, and
    ``source``: its ``run``, ``step`` and ``format``, as the manifest says. ``seconds``: how long it
    took.
    """

    path: Path
    num_files: int
    total_bytes: int
    missing: list[str]
    unexpected: list[str]
    different: dict[str, str]
    version: str
    source: dict[str, str | int | None]
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether every file is there as it was written, and no other."""
        return not (self.missing or self.unexpected or self.different)


def check_folder(
    folder: str | Path, *, jobs: int = 0, progress: Progress | None = None
) -> FolderResult:
    """Say whether ``folder`` is what its ``ckpt_manifest.json`` says, to the last byte.

    Every file is read, by ``jobs`` threads (0: one per core, at least 2 and at most 4), and under
    torchrun by every process a share. ``progress`` is told of bytes. What is found is how the
    folder was written: digests are no signature, and somebody who changes files can write a
    manifest that fits.

    Raises UsageError where there is no folder or no manifest, FormatError where the manifest is
    damaged or names what is outside of the folder, OSError where a file cannot be read.

    >>> import tempfile, torch
    >>> from ckpt_tool import MergeOptions, check_folder, merge_fsdp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"norm.weight": torch.arange(6.0)}, f"{folder}/model_world_size_1_rank_0.pt")
    ...     result = merge_fsdp(folder, f"{folder}/out", MergeOptions(keep_names=True))
    ...     whole = check_folder(f"{folder}/out")
    ...     _ = Path(f"{folder}/out/model.safetensors").write_bytes(b"")
    ...     print(whole.equal, list(check_folder(f"{folder}/out").different))
    True ['model.safetensors']
    """
    with join_team(jobs, progress) as team:
        return check_folder_as_team(folder, team)


def check_folder_as_team(asked: str | Path, team: Team) -> FolderResult:
    """The same by processes that have joined already. Raises what :func:`check_folder` does."""
    started = time.monotonic()
    folder = team.world.each(lambda: reach(asked))
    team.world.each(lambda: _require_manifest(folder))
    held = hold_folder(folder, team)
    files = held.manifest.files
    return FolderResult(
        path=folder,
        num_files=len(files),
        total_bytes=sum(file.size for file in files),
        missing=held.missing,
        unexpected=held.unexpected,
        different=held.different,
        version=held.manifest.version,
        source=held.manifest.source,
        seconds=time.monotonic() - started,
    )


def _require_manifest(folder: Path) -> None:
    """UsageError where no manifest is, which says what is there, and what takes that."""
    require_exists(folder)
    if os.path.lexists(folder / MANIFEST_NAME):
        return
    found = list_checkpoints(folder).places
    if not found and folder.is_dir():
        raise refuse_unknown(folder, formats.FORMATS)
    named = shlex.quote(str(folder))
    if len(found) > 1:
        raise UsageError(
            f"{folder}: {len(found)} checkpoints are below it, and no {MANIFEST_NAME} is in it,"
            " which says what its files are",
            hint=f"List them with: ckpt inspect {named}",
        )
    what = add_article(found[0].format.title) if folder.is_dir() else "a file"
    lacks = f", without the {MANIFEST_NAME} that says what its files are"
    raise UsageError(
        f"{folder}: this is {what}{lacks if folder.is_dir() else ', not a folder'}",
        hint=f"Compare it with another checkpoint: ckpt verify {named} REFERENCE",
    )
