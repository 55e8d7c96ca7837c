"""Which files of a Hugging Face folder are its weights: those that transformers would load.

One file beats an index of the same kind, and safetensors beat ``.bin``: ``model.safetensors``, its
index, ``pytorch_model.bin``, its index (``_get_resolved_checkpoint_files`` of transformers 5; each
combination was run). Where it would find nothing, other names are taken too: an index of another
name, and files that number themselves (``model-00001-of-00003``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.common.regular import is_regular
from ckpt_tool.common.untrusted import read_json_object
from ckpt_tool.common.wording import list_gaps
from ckpt_tool.readers.base import collect

_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.\w+$")
#: By what transformers looks for, in its order: a whole file, or the index of several.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
_INDEX = ".index.json"
_SHOWN = 4


@dataclass(frozen=True)
class WeightFiles:
    """The ``files`` with the weights of a folder.

    ``weight_map``: which file has which tensor, where an index says so. ``problems``: files that
    must be there and are not, and an index that is none. ``warnings``: what lies beside the files,
    looks like weights, and is not read.
    """

    files: list[Path]
    weight_map: dict[str, str] | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with weights in a Hugging Face layout."""
    return path.is_dir() and any(any(path.glob(pattern)) for pattern in _PATTERNS)


def choose_weight_files(folder: Path) -> WeightFiles:
    """The weights of a model folder; OSError where it cannot be read."""
    for name in _WHOLE:
        if (folder / name).exists():
            return _take_whole(folder / name)
        if (folder / f"{name}{_INDEX}").is_file():
            return _take_indexed(folder / f"{name}{_INDEX}")
    for kind in ("safetensors", "bin"):
        for index in filter(Path.is_file, sorted(folder.glob(f"*.{kind}{_INDEX}"))):
            return _take_indexed(index)
    found = next(filter(None, (sorted(folder.glob(pattern)) for pattern in _PATTERNS)), [])
    return WeightFiles(found, problems=tuple(_missing_of_numbered(found)))


def _take_whole(path: Path) -> WeightFiles:
    """A whole file; its index counts if it speaks of that file alone, and else is said to lie."""
    index = path.with_name(f"{path.name}{_INDEX}")
    problems: list[Problem] = []
    weight_map = _read_index(index, problems) if os.path.lexists(index) else None
    if weight_map is not None and set(weight_map.values()) == {path.name}:
        return WeightFiles([path], weight_map)
    warnings = tuple(_warn_of_others([path]))
    if os.path.lexists(index):
        says = "is no index" if weight_map is None else _say_files(weight_map)
        warnings = (
            f"{index.name} {says}, and was not used: transformers loads {path.name}, which is"
            " whole; remove one of the two",
            *warnings,
        )
    return WeightFiles([path], warnings=warnings)


def _say_files(weight_map: dict[str, str]) -> str:
    return f"names {_name_some(sorted(set(weight_map.values())))}"


def _take_indexed(index: Path) -> WeightFiles:
    """The files that an index names."""
    problems: list[Problem] = []
    weight_map = _read_index(index, problems)
    folder = index.parent
    if weight_map is None:
        pattern = _PATTERNS[".bin." in index.name]
        found = sorted(folder.glob(pattern))
        return WeightFiles(found, problems=(*problems, *_missing_of_numbered(found)))
    files, missing = [], []
    for name in sorted(set(weight_map.values())):
        file = folder / name
        if Path(name).name != name or name in ("", ".."):
            problems.append(Problem("index", name, "the index names a file outside of the folder"))
        elif is_regular(file):
            files.append(file)
        else:
            missing.append(file)
    problems += _explain_missing(missing, files)
    return WeightFiles(files, weight_map, tuple(problems), tuple(_warn_of_others(files)))


def _read_index(index: Path, problems: list[Problem]) -> dict[str, str] | None:
    with collect(problems, "index", index):
        found = read_json_object(index).get("weight_map")
        if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()):
            return found
        raise FormatError("not an index with a weight_map", path=index)
    return None


def _explain_missing(missing: list[Path], files: list[Path]) -> Iterator[Problem]:
    """Files that are not there; where the index is stale, what lies there in their place."""
    others = _list_numbered(missing[0].parent, missing[0].suffix) - set(files) if missing else set()
    whole = sorted(others) if others and not any(_missing_of_numbered(sorted(others))) else []
    for file in missing:
        message = "in the index, but not there"
        if whole and not files:
            names = _name_some([path.name for path in whole])
            message += f"; others are ({names}): if they are the model, remove the index"
        yield Problem("missing-file", str(file), message)


def _list_numbered(folder: Path, suffix: str) -> set[Path]:
    return {path for path in folder.glob(f"*{suffix}") if _NUMBERED.fullmatch(path.name)}


def _warn_of_others(files: list[Path]) -> Iterator[str]:
    """A warning of numbered files that are in no set that is read.

    Those of ``.bin`` are no surprise beside safetensors: repositories have both.
    """
    if not files:
        return
    kinds = {files[0].suffix, ".safetensors"}
    numbered = set().union(*(_list_numbered(files[0].parent, suffix) for suffix in kinds))
    others = sorted(numbered - set(files))
    if others:
        names = _name_some([path.name for path in others])
        yield f"not read, as transformers does not load it here: {names}"


def _name_some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{name:.80}" for name in names[:_SHOWN]) + rest


def _missing_of_numbered(files: list[Path]) -> Iterator[Problem]:
    """Without an index the names say how many files there are: ``model-00001-of-00003``."""
    numbered = [match for file in files if (match := _NUMBERED.fullmatch(file.name))]
    for count in sorted({match[3] for match in numbered}):
        here = sorted({int(match[2]) for match in numbered if match[3] == count})
        gaps = list_gaps([number for number in here if 0 < number <= int(count)], 1, int(count) + 1)
        if gaps:
            message = f"file {gaps} of {int(count)} is not there, and there is no index"
            yield Problem("missing-file", str(files[0].parent), message)
