"""Where outputs go: folders, and places in object stores; and how they are prepared there."""

from __future__ import annotations

import os
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.writers.preparation import Preparation
from ckpt_tool.writers.staging import Staging

#: An output.
Place = Path | Address

#: Where whole folders can be written.
_SCHEMES = ("s3", "gs", "az")


def find_place(out: str | Path | Address) -> Place:
    """What was named; UsageError for an address where nothing can be written.

    >>> find_place("s3:/models/qwen"), find_place("models/qwen").name
    (Address(scheme='s3', bucket='models', key='qwen'), 'qwen')
    """
    found = out if isinstance(out, Address) else Address.parse(out)
    if found is None:
        return Path(str(out))
    if found.scheme not in _SCHEMES:
        hint = "Write to a folder, or to s3://, gs:// or az://."
        if found.scheme == "hf":
            hint = "Write to a folder, and send that to the Hub with `upload=ORG/NAME`."
        raise UsageError(f"{found}: nothing is written to {found.scheme}:// addresses", hint=hint)
    return found


def settle_place(out: Place) -> Place:
    """The same, links followed: a rename in another folder would not do."""
    return out if isinstance(out, Address) else Path(os.path.realpath(out))


def open_staging(out: Place, *, fsync: bool, direct: bool) -> Preparation:
    """Where ``out`` is prepared; the options are those of folders."""
    if not isinstance(out, Address):
        return Staging(out, fsync=fsync, direct=direct)
    from ckpt_tool.writers.objects.staging import ObjectStaging

    return ObjectStaging(out)


def probe_place(out: Place) -> None:
    """StoreError where a store does not take objects there; nothing is put."""
    if isinstance(out, Address):
        from ckpt_tool.writers.objects.target import probe_target

        probe_target(out)
