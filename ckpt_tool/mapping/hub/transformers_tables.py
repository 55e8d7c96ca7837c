"""Families that we do not spell out, through transformers' own conversion tables.

transformers 5 knows how to bring the state dict of each of its models into the form it loads from
(``revert_weight_conversion``). It touches tensors only through operations such as ``chunk`` and
``unbind``, so it can be run on a model on the meta device with stand-ins that do the same on lazy
tensors. Importing transformers takes seconds, so this is the second choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.conversion_tensor import ConversionTensor
from ckpt_tool.mapping.hub.form import HubModel, Tie
from ckpt_tool.mapping.hub.inverse import list_changed
from ckpt_tool.mapping.hub.library import find_class, find_unknown, quieten, refuse_unbuilt
from ckpt_tool.mapping.hub.loader import (
    Shapes,
    find_computed,
    find_tied,
    settle_prefixes,
    take_untied,
)
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.geometry import Box, make_strides
from ckpt_tool.tensors.lazy import LazyTensor

AS_THEY_ARE = "Write the tensors as they are with `keep_names=True`."


def name_by_transformers(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> HubModel:
    """The tensors by the names, and in the layouts, that transformers gives them on the Hub.

    A family or class that the installed transformers does not know has no table in it: names are
    kept, with a warning. MappingError where transformers knows it and its names are not known all
    the same: transformers cannot be imported, cannot build the model, or has other tensors in it.
    """
    unknown = find_unknown(config)
    if unknown:
        return HubModel(dict(tensors), config, warnings=(_warn_of_kept(config, unknown),))
    with quieten():
        return _name_by_model(tensors, config, build_known(config))


def _name_by_model(given: Mapping[str, LazyTensor], config: ModelConfig, model: Any) -> HubModel:
    tensors, ties = _set_ties_aside(given, model)
    computed = dict.fromkeys(tensors.keys() & find_computed(model), "computed by the class")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in computed}
    state = take_untied(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    names = set(tensors) - find_tied(model)
    in_memory = names == set(shapes)
    try:
        import transformers.core_model_loading  # noqa: F401 (not there before transformers 5)
    except ImportError:
        _refuse_other_names(names, set(shapes), model, config)
        reason = f"transformers before 5 has no table of it; these are {type(model).__name__}'s"
        return HubModel(dict(tensors), config, warnings=(_warn_of_kept(config, reason),))
    source = tensors if in_memory else {name: _make_empty(s) for name, s in shapes.items()}
    settle_prefixes(model, state)
    reverted = _revert(model, source, config)
    if in_memory:
        _refuse_changed(model, tensors, reverted, config)
        named = {name: found.tensor for name, found in reverted.items()}
        return HubModel(named, config, computed, ties=ties)
    if names != set(reverted) and names == name_without_prefixes(source, config).keys():
        tensors = _add_prefixes(tensors, model, shapes, config)
    else:
        _refuse_other_names(names, set(reverted), model, config)
    return HubModel(dict(tensors), config, computed, ties=ties)


def _add_prefixes(
    tensors: Mapping[str, LazyTensor], model: Any, shapes: Shapes, config: ModelConfig
) -> dict[str, LazyTensor]:
    """Tensors that have the names which transformers gives a model that is not from the Hub.

    ``model`` writes those on the Hub, which may have prefixes more. Of which elements in memory a
    tensor is tells which of these it is.
    """
    places = {name: make_places(name, shape) for name, shape in shapes.items()}
    plain = {t.chunks: name for name, t in name_without_prefixes(places, config).items()}
    whole = {name: found.tensor for name, found in _revert(model, places, config).items()}
    return {name: tensors[plain[place.chunks]] for name, place in whole.items()}


def make_places(name: str, shape: tuple[int, ...]) -> LazyTensor:
    """A tensor whose elements stand for those of the tensor ``name`` in memory."""
    region = Region(name, 0, make_strides(shape))
    return LazyTensor(shape, FLOAT32, FLOAT32, (Chunk(Box((0,) * len(shape), shape), region),))


def name_without_prefixes(
    tensors: Mapping[str, LazyTensor], config: ModelConfig
) -> dict[str, LazyTensor]:
    """All tensors of a class by the names that a model has that was not loaded from the Hub.

    transformers then leaves out prefixes that the Hub has, and opens either. Raises what
    :func:`name_by_transformers` does.
    """
    with quieten():
        reverted = _revert(build_known(config), tensors, config)
    return {name: found.tensor for name, found in reverted.items()}


def _set_ties_aside(
    given: Mapping[str, LazyTensor], model: Any
) -> tuple[dict[str, LazyTensor], dict[str, Tie] | None]:
    """The tensors without those that repeat another one, and these; None before transformers 5.

    Where only the copy was saved, it is the one.
    """
    said = getattr(model, "all_tied_weights_keys", None)
    if not isinstance(said, dict):
        return dict(given), None
    tensors, ties = dict(given), {}
    for name, source in said.items():
        if name not in tensors:
            continue
        copy = tensors.pop(name)
        original = tensors.setdefault(source, copy)
        if original is not copy:
            ties[name] = Tie(copy, source, original)
    return tensors, ties


def _revert(
    model: Any, tensors: Mapping[str, LazyTensor], config: ModelConfig
) -> dict[str, ConversionTensor]:
    """Transformers' own conversion to the form of the Hub."""
    from transformers.core_model_loading import revert_weight_conversion

    stand_ins = {name: ConversionTensor(tensor) for name, tensor in tensors.items()}
    try:
        return dict(revert_weight_conversion(model, stand_ins))
    except NotImplementedError as error:
        raise MappingError(
            f"model type {config.model_type}: on the Hub its weights are rearranged ({error}), in a"
            " way that takes more than to cut, turn and join them",
            hint=AS_THEY_ARE,
        ) from error


def _refuse_changed(
    model: Any,
    tensors: Mapping[str, LazyTensor],
    reverted: Mapping[str, ConversionTensor],
    config: ModelConfig,
) -> None:
    """MappingError where transformers would not load what it saves as it was."""
    try:
        faults = list_changed(model, tensors, reverted)
    except Exception as error:  # whatever a conversion raises
        faults = [f"{type(error).__name__}: {error}"]
    if faults:
        raise MappingError(
            f"model type {config.model_type}: on the Hub its weights are rearranged, and"
            " transformers does not bring them back as they were",
            faults,
            hint=AS_THEY_ARE,
        )


def build_known(config: ModelConfig) -> Any:
    """As :func:`build_on_meta` for a model that transformers knows; MappingError if it cannot."""
    try:
        return build_on_meta(config)
    except Exception as error:  # whatever a model's code raises
        refuse_unbuilt(config, error)


def build_on_meta(config: ModelConfig) -> Any:
    """The model of ``config`` on the meta device: names and shapes without memory.

    Raises what transformers raises; LookupError where it does not know the class. Remote code is
    never run.
    """
    import transformers
    from accelerate import init_empty_weights

    with quieten(), TemporaryDirectory() as folder:  # the config as it will be written
        (Path(folder) / "config.json").write_bytes(config.to_bytes())
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model_class = find_class(config)
    if model_class is None:
        raise LookupError(
            f"transformers {transformers.__version__} has no class {config.architecture!r}"
        )
    # Without, each weight is allocated first.
    with quieten(), init_empty_weights(include_buffers=True):
        return model_class(settings)


def _warn_of_kept(config: ModelConfig, reason: str) -> str:
    return (
        f"model type {config.model_type or '(none)'} is not known ({reason});"
        " tensors keep the names they have in the checkpoint"
    )


def _refuse_other_names(found: set[str], wanted: set[str], model: Any, config: ModelConfig) -> None:
    """MappingError unless these are the names of the model, tied ones apart."""
    if found == wanted:
        return
    missing, unexpected = sorted(wanted - found), sorted(found - wanted)
    raise MappingError(
        f"not the tensors of {type(model).__name__}, neither as it has them in memory nor as on the"
        f" Hub: {len(missing)} missing, {len(unexpected)} unexpected; so nothing says what tensors"
        f" of model type {config.model_type} are called",
        [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected],
        hint="Is config.json that of this model? `fill_from=BASE` takes what is missing from its"
        " base. Write the weights alone, under the names they have, with `keep_names=True`.",
    )


def _make_empty(shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, FLOAT32, FLOAT32, ())
