"""Whether what is to be copied along is whole: looked at when the plan is made, all of it.

A model whose tokenizer has no bytes, or is a link that leads nowhere, does not open, or opens with
less than it had. So a name that would be copied is a regular file, in what was named, readable, and
not empty; ``*.json`` is JSON, and an object where transformers takes nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ckpt_tool.common.errors import CheckpointError, FormatError, Problem
from ckpt_tool.common.lfs import PULL, REASON, starts_pointer
from ckpt_tool.common.links import NO_FILE, OUTSIDE, find_fault, refuse_outside
from ckpt_tool.common.regular import read_end, read_regular
from ckpt_tool.common.untrusted import parse_json, require_object

#: What transformers and this package read as an object.
_OBJECTS = frozenset(
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json"
    " generation_config.json processor_config.json preprocessor_config.json"
    " video_preprocessor_config.json chat_template.json".split()
)
#: What nobody opens to load a model, or is as good with nothing in it: code, and texts for people.
_MAY_BE_EMPTY = re.compile(
    r".*\.(pyi?|typed|md|rst)|(requirements|licen[cs]e|notice)[^/]*|[a-z]+", re.IGNORECASE
)
_NEVER_EMPTY = re.compile(r"vocab|merges|tokens", re.IGNORECASE)
_HEAD = 64
#: JSON of more bytes (vocabularies) is not parsed: that would take longer than to plan a merge.
_SHORT = 1 << 20
_HINTS = {
    "no-file": NO_FILE,
    "link": OUTSIDE,
    "pointer": PULL,
    "unreadable": "Make it readable for yourself (chmod u+r).",
    "damaged": "Copy it anew from where it is whole, or remove it if the model does without.",
}


def find_faults(files: Mapping[str, Path], named: Sequence[Path]) -> dict[str, Problem]:
    """What is wrong with files to copy, by the name that they would have.

    ``named``: the folders that they may be in, as the user named them. JSON is read whole, or its
    ends where it is longer than a MiB; of other files the first bytes.
    """
    found = ((name, _find_fault(name, path, named)) for name, path in files.items())
    return {name: fault for name, fault in found if fault is not None}


def refuse_faults(faults: Sequence[Problem], named: Sequence[Path]) -> None:
    """CheckpointError with all of them, if there is one."""
    if all(fault.kind == "link" for fault in faults):
        refuse_outside(faults, named)
        return
    kinds = dict.fromkeys(fault.kind for fault in faults)
    raise CheckpointError(
        f"{len(faults)} of the files that go along with the weights cannot be copied",
        faults,
        hint=" ".join(_HINTS[kind] for kind in kinds),
    )


def _find_fault(name: str, path: Path, named: Sequence[Path]) -> Problem | None:
    fault = find_fault(path, named)
    if fault is not None:
        return fault
    try:
        head = read_regular(path, _HEAD)
        said = _judge(name, path, head)
    except OSError as error:
        return Problem("unreadable", str(path), f"cannot be read ({error.strerror})")
    if starts_pointer(head):
        return Problem("pointer", str(path), REASON)
    return Problem("damaged", str(path), said) if said else None


def _judge(name: str, path: Path, head: bytes) -> str:
    """What is wrong with a file that begins with ``head``; empty where nothing is."""
    if not head:
        return "" if _may_be_empty(PurePosixPath(name).name) else "has no bytes"
    if path.suffix != ".json":
        return ""
    if path.stat().st_size > _SHORT:
        return _judge_ends(head, read_end(path, _HEAD))
    return _judge_json(name, read_regular(path, _SHORT))


def _judge_json(name: str, content: bytes) -> str:
    """What is wrong with JSON. Half characters are let be where nobody here reads them."""
    is_read = name in _OBJECTS or PurePosixPath(name).name == "modules.json"
    try:
        found = parse_json(content, name, halves=not is_read)
        if name in _OBJECTS:
            require_object(found, name)
    except FormatError as error:
        return error.reason
    return ""


def _judge_ends(head: bytes, end: bytes) -> str:
    """What is wrong with long JSON by its ends: a copy that broke off has none, or zeros."""
    pair = head.lstrip()[:1] + end.rstrip()[-1:]
    return "" if pair in (b"{}", b"[]") else "not JSON: it ends before what it holds does"


def _may_be_empty(name: str) -> bool:
    return bool(_MAY_BE_EMPTY.fullmatch(name)) and not _NEVER_EMPTY.fullmatch(name)
