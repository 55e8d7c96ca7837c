"""A folder held against its manifest, and against what would be written there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import FormatError, UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.regular import read_regular
from ckpt_tool.plans.manifest import MANIFEST_NAME, Manifest, read_manifest
from ckpt_tool.writers.digests import digest_together
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.stream import WrittenFile, digest_file
from ckpt_tool.writers.target import PARTIAL, list_files

SmallFiles = Callable[[list[WrittenFile]], Iterable[tuple[str, bytes]]]

#: What the Hub puts into every repository.
_OF_THE_HUB = ".gitattributes"


@dataclass(frozen=True)
class Comparison:
    """A folder held against what would be written there.

    ``written``: the files with tensors, by its manifest. ``faults``: what is too many, missing or
    different, a sentence each; nothing where the folder is complete.
    """

    written: list[WrittenFile]
    faults: list[str]


def compare_folder(
    out: Path,
    files: Sequence[PlannedFile],
    small_files: SmallFiles,
    plan: str,
    progress: Progress | None,
) -> Comparison:
    """Whether ``out`` is exactly what would be written; ``plan``: the fingerprint.

    Its manifest must be the one that this plan gives, with the digests and cast errors that it
    has; so must every other small file, byte for byte; there must be no further file; and the
    tensors' files must have the digests of the manifest. They are read where nothing else is
    wrong; without ``progress`` their sizes are enough.
    """
    if not (out / MANIFEST_NAME).exists():
        return Comparison([], [f"{MANIFEST_NAME} is missing"])
    written = _read_written(out, plan, len(files))
    if [(w.name, w.size) for w in written] != [(file.name, file.size) for file in files]:
        other = "is of another checkpoint, other options or another version of ckpt-tool"
        return Comparison([], [f"{MANIFEST_NAME} {other}"])
    small = dict(small_files(written))
    expected, there = {*small, *(w.name for w in written)}, list_files(out) - {PARTIAL}
    faults = [f"{name} is missing" for name in sorted(expected - there)]
    faults += [f"{name} is no part of it" for name in sorted(there - expected)]
    for name, content in small.items():
        if name in there and not _holds(out / name, content):
            faults.append(f"{name} differs")
    if progress is None:
        faults += [f"{w.name} differs" for w in written if _measure(out / w.name) != w.size]
        return Comparison(written, faults)
    return Comparison(written, faults or _compare_digests(out, written, progress))


def _holds(path: Path, content: bytes) -> bool:
    return _measure(path) == len(content) and read_regular(path) == content


def _compare_digests(out: Path, written: list[WrittenFile], progress: Progress) -> list[str]:
    faults = []
    progress.start("checking", sum(file.size for file in written))
    for file in written:
        path = out / file.name
        if _measure(path) != file.size or digest_file(path) != file.digest:
            faults.append(f"{file.name} differs")
        progress.advance(file.size)
    return faults


def _read_written(out: Path, plan: str, count: int) -> list[WrittenFile]:
    """What a manifest says of the files with tensors; nothing where it is of another plan."""
    try:
        manifest = read_manifest(out)
    except (FormatError, UsageError, OSError):
        return []
    return list(manifest.files[:count]) if manifest.plan == plan else []


@dataclass(frozen=True)
class Held:
    """A folder held against its manifest, by names of files.

    ``missing``: those that the manifest lists and that are not there; ``unexpected``: that are
    there and not listed; ``different``: each with how it differs.
    """

    manifest: Manifest
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: dict[str, str] = field(default_factory=dict)


def hold_folder(folder: Path, team: Team) -> Held:
    """Read every file of ``folder``, each process of the team its share, several threads of each.

    Raises what :func:`.read_manifest` raises, and OSError where a file cannot be read.
    """
    manifest, there = team.world.first(lambda: (read_manifest(folder), list_files(folder)))
    listed = {file.name for file in manifest.files}
    files = [file for file in manifest.files if file.name in there]
    share = [files[index] for index in team.world.share([file.size for file in files])]
    team.progress.start("checking", sum(file.size for file in share))
    found = team.world.everyone(lambda: _find_different(folder, share, team))
    different = {name: said for part in found for name, said in part.items()}
    return Held(
        manifest,
        missing=sorted(listed - there),
        unexpected=sorted(there - listed - {MANIFEST_NAME, _OF_THE_HUB}),
        different=dict(sorted(different.items())),
    )


def _find_different(folder: Path, files: Sequence[WrittenFile], team: Team) -> dict[str, str]:
    found = {}
    for file in files:
        path, size = folder / file.name, _measure(folder / file.name)
        if size is None:
            found[file.name] = "is no regular file"
        elif size != file.size:
            found[file.name] = f"has {size:,} bytes, expected {file.size:,}"
        else:
            digest = digest_together(path, team.jobs, team.progress.advance)
            if digest != file.digest:
                found[file.name] = f"has other bytes: digest {digest}, expected {file.digest}"
    return found


def _measure(path: Path) -> int | None:
    """Bytes of a regular file; None where there is something else, of which reading may not end."""
    try:
        found = os.stat(path)
    except FileNotFoundError:  # a link that leads nowhere
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
