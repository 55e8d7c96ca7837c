"""Where a report goes: into a new file, or in place of an earlier report, and of nothing else."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from ckpt_tool.cli.report.page import MARK
from ckpt_tool.common.errors import OutputError, say_cause
from ckpt_tool.common.remote.address import Address

_HINT = "Name another file for the report."


def require_place(path: Path) -> None:
    """OutputError where no report can be written, or something else would be lost.

    It may be one of the files that are compared, or lead to one.
    """
    if (address := Address.parse(path)) is not None:
        raise OutputError(f"{address}: reports are written to folders of this machine", hint=_HINT)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: {path.parent} is no folder", hint=_HINT)
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        what = "a symbolic link" if path.is_symlink() else "not a file"
        raise OutputError(f"{path}: is {what}, and is to be written", hint=_HINT)
    if not _is_report(path):
        raise OutputError(f"{path}: exists, and is no report of ckpt: it is kept", hint=_HINT)


def save_report(path: Path, text: str) -> None:
    """Write a report, whole or not at all; raises what :func:`require_place` does."""
    require_place(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: {say_cause(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(1024)
    except OSError:
        return False
