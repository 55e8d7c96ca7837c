"""``ckpt_manifest.json``: where an output came from, and what its files are. Made, and read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError, UsageError
from ckpt_tool.common.regular import measure_file, open_regular
from ckpt_tool.common.untrusted import parse_json, show
from ckpt_tool.common.version import __version__
from ckpt_tool.plans.options import Cast
from ckpt_tool.writers.journal import is_file_size, is_plain_name
from ckpt_tool.writers.stream import DIGEST, WrittenFile

MANIFEST_NAME = "ckpt_manifest.json"

#: Another one where a key means something else than before.
SCHEMA = 1

_MOST_BYTES = 1 << 28
_SAID = ("run", "step", "role", "format")
_LONGEST_NAME = 4096
_DIGEST = re.compile(r"[0-9a-f]{32}")


def make_manifest(
    source: Mapping[str, object],
    casts: Sequence[Cast],
    files: Sequence[WrittenFile],
    more: Mapping[str, object],
) -> bytes:
    """The manifest of an output with these ``files``, all but itself; ``more`` keys at its end.

    It has no absolute paths and no times: it can be published with the model, and is the same
    wherever and whenever the model is made.
    """
    found = {
        "tool": "ckpt-tool",
        "version": __version__,
        "schema": SCHEMA,
        "source": source,
        "digest": DIGEST,
        "files": [{"name": w.name, "bytes": w.size, "digest": w.digest} for w in files],
        "casts": [cast_json(cast) for cast in casts],
        "not_finite": sorted(name for written in files for name in written.spoilt),
    }
    return encode_json({**found, **more})


def encode_json(value: object) -> bytes:
    """A JSON file for people."""
    return (json.dumps(value, indent=2) + "\n").encode()


def cast_json(cast: Cast) -> dict[str, object]:
    """A cast as JSON, which has no infinity: an overflow is said in words."""
    error = cast.max_abs_error
    return {
        "from": cast.source,
        "to": cast.target,
        "num_tensors": cast.num_tensors,
        "max_abs_error": error if error < float("inf") else "overflow",
    }


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    ``version``: of ckpt-tool. ``source``: run, step, role and format, None where nothing is said.
    ``files``: all but the manifest, those with tensors first; the errors of casts and the names of
    tensors that are not finite go with the first: together they are what it has.
    ``plan``: the fingerprint of the plan that was written.
    """

    version: str
    source: dict[str, str | int | None]
    files: tuple[WrittenFile, ...]
    plan: str


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``, with nothing in it that a file of a folder cannot be.

    UsageError where there is none; FormatError where it is damaged, of another form, or names what
    is outside of the folder; OSError where it cannot be read or is no regular file.
    """
    path = folder / MANIFEST_NAME
    try:
        return _make(parse_json(_read(path), path, halves=True))
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: no {MANIFEST_NAME} in it, which says what its files are",
            hint="It is there where ckpt-tool has written a model, unless `write.manifest=False`;"
            " what was made without one can be compared with another checkpoint.",
        ) from None
    except (FormatError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"not a manifest of this version of ckpt-tool ({_say_why(error)})",
            path=path,
            hint="It was damaged or written by something else. Nothing in the folder was read.",
        ) from error


def _say_why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no {error} in it"
    return error.reason if isinstance(error, FormatError) else str(error)


def _read(path: Path) -> bytes:
    """The content of a regular file of a sensible size: what else there is may never end."""
    with open_regular(path) as file:
        size = measure_file(file)
        if size > _MOST_BYTES:
            raise FormatError(f"{size:,} bytes", path=path)
        return file.read(_MOST_BYTES)


def _make(found: Any) -> Manifest:
    if not isinstance(found, dict):
        raise TypeError("no JSON object")
    if type(found["schema"]) is not int or found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r:.20}, expected {SCHEMA}")
    if found["digest"] != DIGEST:
        raise ValueError(f"digests are {found['digest']!r:.80}, expected {DIGEST}")
    errors = tuple(map(_read_cast_error, found["casts"]))
    of_all = (errors, tuple(map(_read_name, found["not_finite"])))
    rows = [_read_row(row) for row in found["files"]]
    names = [name for name, _, _ in rows]
    if len(set(names)) < len(names):
        raise ValueError("a file is listed twice")
    files = tuple(WrittenFile(*row, *(of_all if not at else ())) for at, row in enumerate(rows))
    source = {key: _read_said(found["source"].get(key)) for key in _SAID}
    return Manifest(str(found["version"]), source, files, str(found["plan"]))


def _read_said(value: Any) -> str | int | None:
    if value is None or (isinstance(value, (str, int)) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r:.40} in the source, expected text, a number or null")


def _read_name(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{value!r:.40} where a tensor's name is expected")


def _read_row(row: Any) -> tuple[str, int, str]:
    """Name, bytes and digest of a file; a name stays in the folder."""
    name, size, digest = row["name"], row["bytes"], row["digest"]
    if not isinstance(name, str) or not _is_inside(name):
        raise ValueError(f"{name!r:.80} names no file of the folder")
    if not is_file_size(size):
        raise ValueError(f"{name!r:.80} has {show(size):.40} bytes")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{name!r:.80} has no digest")
    return name, size, digest


def _is_inside(name: str) -> bool:
    if not 0 < len(name) <= _LONGEST_NAME or "\0" in name or name == MANIFEST_NAME:
        return False
    return all(map(is_plain_name, name.split("/")))


def _read_cast_error(row: Any) -> tuple[str, str, float]:
    error = row["max_abs_error"]
    return str(row["from"]), str(row["to"]), float("inf") if error == "overflow" else float(error)
