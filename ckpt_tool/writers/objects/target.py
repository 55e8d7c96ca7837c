"""Whether an output may go to an object store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpt_tool.common.errors import OutputError
from ckpt_tool.common.remote.address import Address, find_address
from ckpt_tool.writers.objects.bucket import Bucket
from ckpt_tool.writers.objects.mark import Mark
from ckpt_tool.writers.objects.sending import Sender
from ckpt_tool.writers.target import PARTIAL, say_faults

_LISTED = 3


def list_names(bucket: Bucket) -> list[str]:
    """The objects of an output, by names below it, without the mark of a run."""
    return sorted(row.name for row in bucket.list() if row.name != PARTIAL)


def require_empty(out: Address, names: Sequence[str], faults: Sequence[str] = ()) -> None:
    """OutputError where something is there that must stay."""
    if names:
        more = ", ..." if len(names) > _LISTED else ""
        there = "" if faults else f" ({', '.join(names[:_LISTED])}{more})"
        raise OutputError(
            f"{out}: exists and is not empty{there}{say_faults(faults)}",
            hint="Choose another place, or replace what is there with `write.overwrite=True`.",
        )


def check_object_target(
    out: Address, *, replace: bool, protected: Sequence[Path], faults: Sequence[str] = ()
) -> list[str]:
    """What is there; OutputError unless ``out`` may be written.

    Asked is what :func:`~ckpt_tool.writers.target.check_target` asks of a folder. StoreError where
    the store is not reached, or refuses.
    """
    for path in protected:
        source = find_address(path)
        if source is not None and out.holds(source):
            raise OutputError(
                f"{out}: is or contains the checkpoint itself ({source})",
                hint="Choose another output.",
            )
    sender = Sender()
    try:
        bucket = Bucket(out, sender)
        left = Mark(bucket, sender).look()
        names = [name for name in list_names(bucket) if name not in left]
        require_empty(out, [] if replace else names, faults)
        if names and not out.key:
            raise OutputError(
                f"{out}: is a whole bucket, and none is replaced", hint="Name a place in it."
            )
        return names
    finally:
        sender.close()


def probe_target(out: Address) -> None:
    """StoreError unless the store takes objects there; none is put."""
    sender = Sender()
    try:
        Bucket(out, sender).probe(PARTIAL)
    finally:
        sender.close()
