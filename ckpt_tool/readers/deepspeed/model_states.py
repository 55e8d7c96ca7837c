"""A file of model states of DeepSpeed: ``module`` and what else is said of its parameters.

``module`` is the state dict: whole tensors in stages 0 to 2, empty ones and buffers in stage 3.
``param_shapes`` lists the trained parameters of each group in the order in which they are
flattened, ``frozen_param_shapes`` and ``frozen_param_fragments`` what was not trained,
``shared_params`` second names of parameters. The run's config, its state and whatever it was given
to save lie beside these, and are not looked at. Source: ``deepspeed/runtime/engine.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import name_file
from ckpt_tool.readers.deepspeed.values import (
    StateDict,
    read_rows,
    read_shapes,
    read_size,
    read_state_dict,
    read_texts,
)
from ckpt_tool.readers.torch_save.archive import StoredTensor, TorchArchive
from ckpt_tool.readers.torch_save.names import resolve_run
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.geometry import Shape


@dataclass(slots=True)
class ModelStates:
    """What a file of model states says.

    ``module``: the state dict, as it is there; ``tensors``: what of it has elements and is no
    trained parameter. ``groups``: the shapes of trained parameters, by group; None where nothing is
    partitioned. ``frozen``: whole tensors or pieces of what was not trained, ``frozen_shapes``:
    their shapes. ``shared``: the owner of each second name. ``world``: of data parallel ranks,
    ``parallel``: of tensor parallel ones. ``step``: of training. ``faults``: what is wrong with
    single tensors.
    """

    module: StateDict
    groups: list[dict[str, Shape]] | None
    frozen_shapes: dict[str, Shape]
    shared: dict[str, str]
    world: int | None
    parallel: int | None
    step: int | None
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    frozen: dict[str, StoredTensor] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    sums: FileSums = field(default_factory=lambda: FileSums([]))


def read_model_states(path: Path) -> ModelStates:
    """What a file of model states says.

    FormatError where it is none, UnsafeContentError where its pickle asks for code.
    """
    with TorchArchive(path) as archive, name_file(path):
        state = archive.load(resolve_run)
        if not isinstance(state, dict) or not isinstance(state.get("module"), dict):
            raise FormatError("no model states of DeepSpeed: no state dict 'module' in it")
        module = read_state_dict(state["module"], "the state dict")
        frozen = read_state_dict(state.get("frozen_param_fragments"), "frozen_param_fragments")
        found = _read_head(state, module)
        found.faults += module.faults + frozen.faults
        trained = {name for group in found.groups or () for name in group}
        found.shared = _find_shared(found.shared, module.refs, trained)
        rest = module.refs.keys() - trained - found.shared.keys()
        whole = {n: ref for n, ref in module.refs.items() if n in rest and 0 not in ref.shape}
        found.tensors = _locate(archive, whole, found.faults)
        found.frozen = _locate(archive, frozen.refs, found.faults)
        found.sums = FileSums(archive.sums())
    return found


def _read_head(state: dict[Any, Any], module: StateDict) -> ModelStates:
    groups = state.get("param_shapes")
    rows = read_rows(groups, "param_shapes")
    return ModelStates(
        module=module,
        groups=None if groups is None else [read_shapes(row, "param_shapes") for row in rows],
        frozen_shapes=read_shapes(state.get("frozen_param_shapes"), "frozen_param_shapes"),
        shared=read_texts(state.get("shared_params")),
        world=read_size(state.get("dp_world_size")),
        parallel=read_size(state.get("mp_world_size")),
        step=read_size(state.get("global_steps")),
    )


def _find_shared(
    said: dict[str, str], refs: Mapping[str, TensorRef], trained: set[str]
) -> dict[str, str]:
    """Second names: as the file says, and of trained parameters those that have one memory."""
    places = {_place(refs[name]): name for name in refs if name in trained}
    same = {name: places[_place(ref)] for name, ref in refs.items() if _place(ref) in places}
    return {name: owner for name, owner in (same | said).items() if name not in trained}


def _place(ref: TensorRef) -> tuple[object, ...]:
    return ref.storage.key, ref.offset, ref.shape, ref.strides


def _locate(
    archive: TorchArchive, refs: Mapping[str, TensorRef], faults: list[str]
) -> dict[str, StoredTensor]:
    found = {}
    for name, ref in refs.items():
        try:
            found[name] = archive.locate_tensor(ref, name)
        except FormatError as error:
            faults.append(error.reason)
    return found
