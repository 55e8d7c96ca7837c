"""Hugging Face weights: safetensors files of a bounded size, Hub names, and their index.

Layout of a file: 8 bytes header length, the JSON header padded with spaces to a multiple of 8,
the data. Within a file wide dtypes come first, as the safetensors library orders them, so that
every tensor is aligned. Which tensors share a file, and the names ``model-00001-of-0000N``,
follow ``huggingface_hub.split_torch_state_dict_into_shards``: in order, a file is closed when the
next tensor would exceed the limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from ckpt_tool.common.errors import MappingError, OutputError
from ckpt_tool.common.untrusted import is_text
from ckpt_tool.common.wording import count_noun
from ckpt_tool.tensors.dtypes import MAX_SAFETENSORS_HEADER
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.planned import PlannedFile, Role

INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
#: What a header says of the file, in place of a tensor.
_METADATA = "__metadata__"
#: A text as JSON has it.
_quote = json.JSONEncoder(ensure_ascii=False).encode


def plan_files(tensors: Mapping[str, LazyTensor], max_shard_size: int) -> list[PlannedFile]:
    """The files that hold ``tensors``, of ``max_shard_size`` bytes of them at most, headers aside.

    A tensor that is larger has a file of its own. Reads and writes nothing. Raises what
    :func:`plan_file` does.
    """
    groups: list[dict[str, LazyTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.nbytes > max_shard_size:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.nbytes
    return [
        plan_file(_name_file(number, len(groups)), group) for number, group in enumerate(groups, 1)
    ]


def plan_file(file: str, tensors: Mapping[str, LazyTensor], role: Role = "weights") -> PlannedFile:
    """One safetensors file that holds ``tensors``; ``file``: its path below the output.

    MappingError where names are none that such a file can have, OutputError where there are so many
    that no reader takes its header.
    """
    _refuse_names(tensors)
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    ordered = [tensors[name] for name in names]
    rows, offsets, at = [f'"{_METADATA}":{{"format":"pt"}}'], [], 0
    for name, tensor in zip(names, ordered, strict=True):
        end = at + tensor.nbytes
        shape = ",".join(map(str, tensor.dtype.to_header(tensor.shape)))
        rows.append(
            f'{_quote(name)}:{{"dtype":"{tensor.dtype.safetensors}","shape":[{shape}],'
            f'"data_offsets":[{at},{end}]}}'
        )
        offsets.append(at)
        at = end
    text = f"{{{','.join(rows)}}}".encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_SAFETENSORS_HEADER:
        raise OutputError(
            f"{file}: a header of {len(text):,} bytes for {len(tensors):,} tensors; readers of"
            f" safetensors take up to {MAX_SAFETENSORS_HEADER:,}",
            hint="Spread the tensors over more files with a smaller `max_shard_size`.",
        )
    header = len(text).to_bytes(8, "little") + text
    starts = (0, *(len(header) + offset for offset in offsets))
    return PlannedFile(file, tuple(names), (header, *ordered), starts, len(header) + at, role)


def _refuse_names(names: Iterable[str]) -> None:
    """MappingError that lists names with which a file could not be read, or names nothing."""
    wrong = [name for name in names if name in ("", _METADATA) or "\0" in name or not is_text(name)]
    if wrong:
        raise MappingError(
            f"{count_noun(len(wrong), 'name')} that no tensor of a safetensors file can have:"
            f" empty, {_METADATA}, with a NUL, or no Unicode",
            [ascii(name) for name in wrong],
            hint="Save the checkpoint with other names."
            " Or give them others with `names.rename`, or leave them out with `names.select`.",
        )


def make_index(files: Sequence[PlannedFile]) -> bytes | None:
    """The index of several files (``total_size`` in bytes); None for fewer."""
    if len(files) < 2:
        return None
    weight_map = {name: file.name for file in files for name in file.names}
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    parameters = sum(tensor.numel for file in files for tensor in file.tensors)
    index = {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def _name_file(number: int, total: int) -> str:
    return "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
