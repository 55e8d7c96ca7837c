"""A file of a checkpoint, and whether it is still what it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file of a checkpoint, as it was when it was opened.

    ``path``; ``bytes``: its size; ``rank``: whose file it is, None where files belong to no rank
    or where a rank has several numbers. ``parallel``: those numbers, by the kind of parallelism
    (``{"tp": 0, "pp": 1, "ep": 0}``), counted from 0. ``mtime_ns``: when it was last changed, in
    nanoseconds since 1970; 0 where nobody asked. ``which``: numbers of its device and inode.
    """

    path: str
    bytes: int
    rank: int | None
    parallel: dict[str, int] | None = None
    mtime_ns: int = 0
    which: tuple[int, int] = field(default=(0, 0), compare=False, repr=False)

    @classmethod
    def stat(
        cls, path: Path, rank: int | None = None, parallel: dict[str, int] | None = None
    ) -> ShardFile:
        """The file as it is now; of no size where a link leads nowhere, which reading reports.

        Readers ask before they read: whoever compares later sees what changed since.
        """
        try:
            found = path.stat()
        except OSError:
            return cls(str(path), 0, rank, parallel)
        which = (found.st_dev, found.st_ino)
        return cls(str(path), found.st_size, rank, parallel, found.st_mtime_ns, which)

    def say_change(self) -> str:
        """What has become of the file since; empty where it is the same, and unchanged.

        Of a remote file every answer is held against the version that was listed.
        """
        now = ShardFile.stat(Path(self.path))
        if now.bytes != self.bytes:
            return f"had {self.bytes:,} bytes when it was opened, and has {now.bytes:,} now"
        if now.mtime_ns != self.mtime_ns:
            return "was written again after it was opened"
        if now.which != self.which:
            return "was replaced by another file after it was opened"
        return ""
