"""Universal checkpoints of DeepSpeed: every trained parameter whole, in a file of its own.

``ds_to_universal`` makes ``zero/<name>/fp32.pt`` of the partitions: of stages 1 and 2 a dict with
the parameter as ``param``, of stage 3 the parameter itself, flat; beside them are the model states
as they were. Source: ``deepspeed/checkpoint/ds_to_universal.py``.
"""

from __future__ import annotations

from pathlib import Path

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Entry, Holding, collect, name_file
from ckpt_tool.readers.deepspeed.model_states import ModelStates
from ckpt_tool.readers.deepspeed.ranks import Ranks
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.names import resolve_run
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.geometry import Box, Shape, make_strides


def join_universal(first: ModelStates, ranks: Ranks) -> dict[str, Entry]:
    """Every trained parameter; without blocks where its file is missing or holds another one."""
    entries: dict[str, Entry] = {}
    for group in first.groups or ():
        for name, shape in group.items():
            path = ranks.files.universal.get(name)
            entries[name] = Entry(name, shape, FLOAT32, "whole", ())
            if path is None:
                ranks.report("missing-file", name, f"no zero/{name}/fp32.pt in {ranks.folder}")
                continue
            with collect(ranks.problems, "unreadable", path):
                entries[name] = _read(path, name, shape, ranks)
    return entries


def _read(path: Path, name: str, shape: Shape, ranks: Ranks) -> Entry:
    """A parameter out of its file, which has all of its elements in their order."""
    with TorchArchive(path) as archive, name_file(path):
        ref = archive.load(resolve_run)
        ref = ref.get("param") if isinstance(ref, dict) else ref
        if not isinstance(ref, TensorRef) or not ref.dtype.is_float:
            raise FormatError("no weights of a parameter in it")
        count = Box((), shape).volume
        if ref.shape not in (shape, (count,)) or ref.strides != make_strides(ref.shape):
            raise FormatError(f"{list(ref.shape)}, expected {list(shape)}, or [{count}]")
        region = archive.locate_tensor(ref, name).region._replace(strides=make_strides(shape))
        ranks.sums[str(path)] = FileSums(archive.sums())
    holding = Holding(None, Box((0,) * len(shape), shape), region)
    return Entry(name, shape, ref.dtype, "whole", (holding,))
