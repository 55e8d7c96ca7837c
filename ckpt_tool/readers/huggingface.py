"""Hugging Face model folders and single files: safetensors, or ``pytorch_model*.bin``.

safetensors: 8 bytes header length (little-endian), a JSON header ``{name: {"dtype", "shape",
"data_offsets"}}`` with an optional ``__metadata__``, then the data, which the tensors fill without
gaps. A folder with several files has ``*.safetensors.index.json``: ``{"metadata": {"total_size"},
"weight_map": {name: file}}``. Source: the format section of the safetensors README.
"""

from __future__ import annotations

import os
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.common.lfs import REASON, starts_pointer
from ckpt_tool.common.regular import announce_ends, measure_file, open_regular
from ckpt_tool.common.untrusted import parse_json, require_object, show
from ckpt_tool.readers.base import Checkpoint, Entry, Holding, ShardFile, collect
from ckpt_tool.readers.torch_file import open_flat_file
from ckpt_tool.readers.weight_files import WeightFiles, choose_weight_files, is_model_folder
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import BY_SAFETENSORS, MAX_SAFETENSORS_HEADER, DType
from ckpt_tool.tensors.geometry import MOST_ELEMENTS, Box, Shape, make_strides

_MOST_DIMS = 64
_MOST_BYTES = 1 << 48


def read_safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a file and the byte at which its data starts; FormatError if damaged."""
    with open_regular(path) as file:
        size = measure_file(file)
        if starts_pointer(file.read(64)):
            raise FormatError(REASON, path=path)
        file.seek(0)
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_SAFETENSORS_HEADER, size - 8):
            raise FormatError(f"a header of {length} bytes in a file of {size}", path=path)
        try:
            return require_object(parse_json(file.read(length), path), path), 8 + length
        except FormatError as error:
            raise FormatError(f"the header: {error.reason}", path=path) from error


def locate_huggingface(path: Path) -> Path | None:
    """``path``, where it is a model's folder or one of its safetensors files; else None."""
    single = path.is_file() and path.suffix == ".safetensors"
    return path if single or is_model_folder(path) else None


def open_sound_model(path: Path) -> Checkpoint:
    """:func:`open_huggingface`; raises CheckpointError with every problem, if there is one."""
    found = open_huggingface(path)
    found.require_sound()
    return found


def open_huggingface(path: Path) -> Checkpoint:
    """A model folder, or one safetensors file; damage becomes the checkpoint's ``problems``."""
    folder = path if path.is_dir() else path.parent
    chosen = choose_weight_files(path) if path.is_dir() else WeightFiles([path])
    problems, paths = list(chosen.problems), chosen.files
    files = tuple(ShardFile.stat(file) for file in paths)
    announce_ends(paths)
    entries: dict[str, Entry] = {}
    sums: dict[str, FileSums] = {}
    for file in paths:
        for entry in _file_entries(file, problems, sums):
            if entry.name in entries:
                message = f"also in {entries[entry.name].holdings[0].region.path}"
                problems.append(Problem("duplicate", f"{entry.name} ({file})", message))
            entries[entry.name] = entry
    if chosen.weight_map is not None:
        there = {file.name for file in paths}
        problems.extend(_index_problems(chosen.weight_map, entries, there))
    return Checkpoint(
        format="huggingface",
        path=path,
        entries=entries,
        files=files,
        problems=tuple(problems),
        side_files=folder if os.path.lexists(folder / "config.json") else None,
        sums=sums,
        warnings=chosen.warnings,
    )


def list_weight_names(folder: Path) -> set[str]:
    """The names of a model's tensors, as an index says them, or the headers of safetensors do.

    None where neither is there; what is damaged says nothing.
    """
    chosen = choose_weight_files(folder)
    names = set(chosen.weight_map or ())
    for path in [] if names else chosen.files:
        if path.suffix == ".safetensors":
            with suppress(FormatError, OSError):
                names.update(read_safetensors_header(path)[0])
    return names


def _file_entries(path: Path, problems: list[Problem], sums: dict[str, FileSums]) -> list[Entry]:
    with collect(problems, "unreadable", path):
        if path.suffix == ".bin":
            inner = open_flat_file(path)
            problems.extend(inner.problems)
            sums.update(inner.sums)
            return list(inner.entries.values())
        return read_safetensors(path)[0]
    return []


def read_safetensors(path: Path) -> tuple[list[Entry], Any]:
    """Every tensor of a file, proven to fill its data exactly, and its ``__metadata__``, unread.

    FormatError where it is damaged.
    """
    header, start = read_safetensors_header(path)
    entries = []
    spans = []
    file = str(path)
    wholes: dict[Shape, tuple[Box, Shape]] = {}  # thousands of tensors have the same few shapes
    for name, row in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = _read_row(name, row, path)
        if end - begin != prod(shape) * dtype.itemsize:
            raise FormatError(
                f"{name}: {end - begin} bytes for {dtype} {list(shape)},"
                f" expected {prod(shape) * dtype.itemsize}",
                path=path,
            )
        spans.append((begin, end))
        if shape not in wholes:
            wholes[shape] = Box((0,) * len(shape), shape), make_strides(shape)
        box, strides = wholes[shape]
        holding = Holding(None, box, Region(file, start + begin, strides))
        entries.append(Entry(name, box.sizes, dtype, "whole", (holding,)))
    _check_spans(path, sorted(spans), path.stat().st_size - start)
    return entries, header.get("__metadata__")


def _read_row(name: str, row: Any, path: Path) -> tuple[DType, Shape, tuple[int, int]]:
    """Dtype, shape in elements, and where a tensor lies in the data."""
    try:
        dtype = BY_SAFETENSORS.get(row["dtype"])
        if dtype is None:
            said = show(row["dtype"])
            raise FormatError(f"{name}: dtype {said}, which is not known here", path=path)
        begin, end = _sizes(row["data_offsets"])
        return dtype, dtype.from_header(_shape(row["shape"])), (begin, end)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{name}: a malformed row ({error})", path=path) from error


def _sizes(values: Any) -> tuple[int, ...]:
    """A list of sizes as a tuple; ValueError unless each is an integer that a file can have."""
    if not isinstance(values, list) or len(values) > _MOST_DIMS:
        raise ValueError("not a list of a few sizes")
    for value in values:
        if type(value) is not int or not 0 <= value < _MOST_BYTES:
            raise ValueError("not a list of sizes")
    return tuple(values)


def _shape(values: Any) -> tuple[int, ...]:
    shape = _sizes(values)
    if prod(shape) >= MOST_ELEMENTS:
        raise ValueError("more elements than a file can have")
    return shape


def _check_spans(path: Path, spans: list[tuple[int, int]], size: int) -> None:
    at = 0
    for begin, end in spans:
        if begin != at:
            raise FormatError(f"tensors leave a gap or overlap at byte {at} of the data", path=path)
        at = end
    if at != size:
        raise FormatError(
            f"{size} bytes of data, expected {at}: truncated or not what was written",
            path=path,
            hint="Compare its size with the original and copy it again.",
        )


def _index_problems(
    weight_map: dict[str, str], entries: dict[str, Entry], there: set[str]
) -> list[Problem]:
    problems = []
    for name, file in weight_map.items():
        entry = entries.get(name)
        if entry is None:
            if file in there:
                problems.append(Problem("missing-tensor", name, f"the index says it is in {file}"))
        elif Path(entry.holdings[0].region.path).name != file:
            problems.append(Problem("index", name, f"not in {file}, as the index says"))
    unlisted = [name for name in entries if name not in weight_map]
    return problems + [Problem("index", name, "not listed in the index") for name in unlisted]
