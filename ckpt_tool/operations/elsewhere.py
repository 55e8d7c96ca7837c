"""Where the output goes, and what makes no sense where that is an object store."""

from __future__ import annotations

from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.writers.places import Place, find_place


def settle_out(
    named: str | Path | Address,
    options: WriteOptions,
    *,
    is_sent: bool = False,
    is_megatron: bool = False,
) -> Place:
    """The folder, or the place in a store, that was named.

    ``is_sent``: it is to be uploaded to the Hub; ``is_megatron``: it is for megatron-core.
    UsageError where nothing can be written there, or not what the options want.
    """
    out = find_place(named)
    if not isinstance(out, Address):
        return out
    if is_sent:
        raise UsageError(
            f"`upload`: sends a folder, and OUT is {out}",
            hint="Merge to a folder with `upload=ORG/NAME`, or run the merge once more for that.",
        )
    if is_megatron and options.check_load:
        raise UsageError(
            f"`write.check_load`: megatron-core loads folders only, and OUT is {out}",
            hint="Leave it out, or write to a folder and copy that.",
        )
    said = "`write.fsync=False`" if not options.fsync else f"`write.direct={options.direct}`"
    if not options.fsync or options.direct is not None:
        raise UsageError(
            f"{said}: is about files on a disk, and OUT is {out}",
            hint="Leave it out: an object is stored when its store says so.",
        )
    return out
