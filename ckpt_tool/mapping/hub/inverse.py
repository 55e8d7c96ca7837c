"""Whether transformers loads rearranged weights as they were: its conversions, run both ways.

How it saves a model and how it loads one are two conversions, and nothing but care makes one the
inverse of the other. A shape does not tell that rows are in another order: so what is rearranged is
brought back, and must be the elements that it was made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from ckpt_tool.mapping.hub.conversion_tensor import ConversionTensor
from ckpt_tool.tensors.geometry import unravel
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.reshaped import find_element, is_reshaped

#: Elements of a tensor that are looked at, spread over it.
_SAMPLES = 101


def list_changed(
    model: Any, given: Mapping[str, LazyTensor], reverted: Mapping[str, ConversionTensor]
) -> list[str]:
    """The tensors in memory that would come back from ``reverted`` as others, in lines.

    ``reverted``: those in ``given`` as transformers saves them. Looked at are those whose rows it
    has rearranged. Raises what a conversion raises that does not take what the other has made.
    """
    if not any(is_reshaped(each.tensor) for each in reverted.values()):
        return []
    return [
        f"{name}: would be loaded with its elements in another order"
        for name, tensor in _load(model, reverted)
        if name in given and not _is_same(tensor, given[name])
    ]


def _load(model: Any, reverted: Mapping[str, ConversionTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """What the way from the Hub makes of rearranged tensors, by names in memory."""
    for first, converter in _collect(model, reverted).items():
        parts = [each for found in converter.collected_tensors.values() for each in found]
        if not any(is_reshaped(part.tensor) for part in parts):
            continue
        for name, made in converter.convert(first, model=model, config=model.config).items():
            yield name, made[0].tensor


def _collect(model: Any, reverted: Mapping[str, ConversionTensor]) -> dict[str, Any]:
    """The converters of transformers' loader with what each is given, by their first name."""
    from transformers.core_model_loading import WeightConverter

    every = deepcopy(_list_conversions(model))
    converters = [each for each in every if isinstance(each, WeightConverter)]
    renamings = [each for each in every if not isinstance(each, WeightConverter)]
    found: dict[str, Any] = {}
    for name in sorted(reverted, key=_sort_numbers):
        renamed = name
        for renaming in renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        for converter in converters:
            target, pattern = converter.rename_source_key(renamed)
            if pattern is not None:
                one = found.setdefault(target, deepcopy(converter))
                one.add_tensor(target, name, pattern, reverted[name])
                break
    return found


def _list_conversions(model: Any) -> list[Any]:
    """Those that were reverted: what :func:`.settle_prefixes` chose, or of a model not loaded."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    chosen = getattr(model, "_weight_conversions", None)
    if chosen is not None:
        return list(chosen)
    every = get_model_conversion_mapping(model, add_legacy=False)
    return [each for each in every if type(each).__name__ != "PrefixChange"]


def _is_same(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether elements spread over two tensors are the same ones of the same files."""
    if one.shape != other.shape:
        return False
    step = max(1, one.numel // _SAMPLES)
    places = [unravel(at, one.shape) for at in (*range(0, one.numel, step), one.numel - 1)]
    return all(find_element(one, at) == find_element(other, at) for at in places if one.numel)


def _sort_numbers(name: str) -> list[tuple[bool, int, str]]:
    """The loader's order of names: numbers in them by their size."""
    parts = ((part.isdecimal() and len(part) < 10, part) for part in name.split("."))
    return [(not counts, int(part) if counts else 0, part) for counts, part in parts]
