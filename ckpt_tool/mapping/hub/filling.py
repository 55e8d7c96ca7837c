"""What a checkpoint lacks, from the model that it was trained from: ``--fill-from BASE``.

Towers that were frozen, talkers, layers for multi-token prediction that training dropped: they are
what they were. Names are compared in the form that the checkpoint has, in memory or as on the Hub;
where it is a part of the model with names of its own (the text model of a multimodal one, the
thinker of an Omni model), these get the names that they have in the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.casting import find_main_dtype
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.heads import is_classifier, is_output
from ckpt_tool.mapping.hub.library import find_unknown
from ckpt_tool.mapping.hub.memory import InMemory, to_memory
from ckpt_tool.mapping.hub.names import is_fused, split_fused, unwrap_names
from ckpt_tool.mapping.quantised import dequantise_weights, find_quantisation, list_kinds
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32, DType
from ckpt_tool.tensors.lazy import LazyTensor

Names = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Filling:
    """A whole model: ``memory`` as its class has it there, None where nobody knows the class.

    ``hub``: all of it by its names on the Hub. ``main``: the dtype of most of its bytes.
    """

    hub: Tensors
    memory: InMemory | None
    main: DType | None = None


def make_filling(base: HubModel, model: HubModel, *, on_hub: bool = False) -> Filling:
    """``base``, by its names on the Hub, as what fills ``model``.

    ``on_hub``: so are those of ``model``, and what a class has in memory is of no account.
    Quantised weights are multiplied with their scales. MappingError where the two are of different
    types, or where the base's weights are packed in a way that is not read.
    """
    config = model.config
    assert config is not None
    assert base.config is not None
    if base.config.model_type != config.model_type:
        raise MappingError(
            f"`fill_from`: {base.config.path} says model_type {base.config.model_type}, and"
            f" {config.path} says {config.model_type}",
            hint="Name the config of the whole model with `config=DIR`.",
        )
    tensors, kind = base.tensors, find_quantisation(base.tensors)
    if kind == find_quantisation(model.tensors):
        kind = ""
    if kind == "packed" and not list_kinds(tensors):
        raise MappingError(
            "`fill_from`: its weights are packed, and those of the checkpoint are not",
            hint="Name the model before it was quantised.",
        )
    if kind:
        dtype = find_main_dtype(model.tensors.values()) or BFLOAT16
        tensors = dequantise_weights(tensors, base.config, dtype)
    known = not on_hub and not find_unknown(config)
    main = find_main_dtype(tensors.values())
    return Filling(tensors, to_memory(tensors, base.config) if known else None, main)


def fill_known(model: HubModel, filling: Filling) -> HubModel:
    """The model with what its class has and it lacks; nothing where the class is not known.

    MappingError lists tensors that have other shapes in the two.
    """
    if filling.memory is None:
        return model
    tensors, memory = unwrap_names(model.tensors), filling.memory
    on_hub = {name: t for name, t in filling.hub.items() if name not in memory.rest}
    if len(tensors.keys() & on_hub.keys()) > len(tensors.keys() & memory.tensors.keys()):
        return _fill(replace(model, tensors=tensors), on_hub, filling.main)
    tensors = _name_as_part(tensors, memory.tensors)
    return _fill(replace(model, tensors=tensors), memory.tensors, filling.main)


def fill_rest(model: HubModel, filling: Filling) -> HubModel:
    """The model, by its names on the Hub, with what no class has a place for.

    That are layers for multi-token prediction; all that is missing where the class is not known.
    """
    config, rest = model.config, filling.hub
    assert config is not None
    if filling.memory is not None:
        rest = {name: rest[name] for name in filling.memory.rest}
    elif any(is_fused(name, config) for name in rest):
        whole = any(is_fused(name, config) for name in model.tensors)
        rest = rest if whole else split_fused(rest, config)
    dropped = model.dropped.keys() | (model.ties or {}).keys()
    rest = {name: tensor for name, tensor in rest.items() if name not in dropped}
    return _fill(model, rest, filling.main)


def _fill(model: HubModel, whole: Names, main: DType | None) -> HubModel:
    """``model``, and what ``whole`` has beside it, but for a head that is not wanted.

    What is float32 there, where most is ``main`` and narrower, stays so in a cast (vocoders).
    """
    tensors, config = model.tensors, model.config
    faults = [
        f"{name}: shape {list(tensor.shape)}, and {list(whole[name].shape)} there"
        for name, tensor in tensors.items()
        if name in whole and not _is_alike(tensor, whole[name])
    ]
    if faults:
        raise MappingError(
            "`fill_from`: another model than this one",
            faults,
            hint="Name the model that this one was trained from.",
        )
    tied = config is not None and bool(config.tied)
    headless = tied or any(map(is_classifier, tensors))
    added = {
        name: tensor
        for name, tensor in whole.items()
        if name not in tensors and not (headless and is_output(name))
    }
    if config is not None and main != FLOAT32:
        wide = {name for name, tensor in added.items() if tensor.dtype == FLOAT32}
        config = replace(config, own_dtypes=config.own_dtypes | wide)
    return replace(model, tensors=dict(tensors) | added, config=config)


def _is_alike(tensor: LazyTensor, other: LazyTensor) -> bool:
    """Whether shapes are the same, but for rows of an embedding that tokens were added to."""
    resized = len(tensor.shape) == 2 and tensor.shape[1:] == other.shape[1:]
    return tensor.shape == other.shape or resized


def _name_as_part(tensors: Names, whole: Names) -> Tensors:
    """Tensors of a part of the model by the names that they have in the whole.

    Those whose names have the same first part get the same beginning, if there is one with which
    all of them are there, in the same shapes.
    """
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(name.partition(".")[0], []).append(name)
    named: Tensors = {}
    for first, names in groups.items():
        old, new = _find_beginning(first, {name: tensors[name] for name in names}, whole)
        named |= {new + name.removeprefix(old): tensors[name] for name in names}
    return named


def _find_beginning(first: str, names: Names, whole: Names) -> tuple[str, str]:
    """What names begin with, and what takes its place; the same where nothing or too much fits."""
    if names.keys() <= whole.keys():
        return "", ""
    # Without its first part "score.weight" would be any module's.
    olds = ("", f"{first}.") if all(name.count(".") > 1 for name in names) else ("",)
    for old in olds:
        found = [
            new for new in _list_beginnings(names, old, whole) if _fits(names, old, new, whole)
        ]
        if len(found) == 1:
            return old, found[0]
        if found:
            raise MappingError(
                f"`fill_from`: tensors below {first} could be any of these parts of the model",
                found,
            )
    return "", ""


def _list_beginnings(names: Names, old: str, whole: Names) -> list[str]:
    """What the first of names may begin with in the whole."""
    end = next(iter(names)).removeprefix(old)
    return sorted(name.removesuffix(end) for name in whole if name.endswith(f".{end}"))


def _fits(names: Names, old: str, new: str, whole: Names) -> bool:
    """Whether all names are there with another beginning, as tensors of rows of the same shape."""
    there = ((whole.get(new + name.removeprefix(old)), tensor) for name, tensor in names.items())
    return all(other is not None and other.shape[1:] == t.shape[1:] for other, t in there)
