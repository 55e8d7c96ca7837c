"""A whole model from one side to the other, by its bindings: complete and exact, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckpt_tool.errors import MappingError
from ckpt_tool.geometry import Shape
from ckpt_tool.lazy import LazyTensor
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.bindings import (
    Binding,
    Repeat,
    bindings_of,
    default_layout,
    mtp_prefix,
    repeats_of,
)
from ckpt_tool.mapping.megatron.numbers import Numbers, family_of, numbers_of
from ckpt_tool.sharded import Block, ShardedTensor

Tensors = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Rules:
    """The bindings of one model. ``layout``: ``stacked`` or ``per-layer``."""

    config: ModelConfig
    numbers: Numbers
    layout: str
    bindings: list[Binding]
    repeats: list[Repeat]
    warnings: list[str]


def rules_for(
    config: ModelConfig, names: Iterable[str], layout: str = "", vocab_multiple: int = 1
) -> Rules:
    """The rules for a model with Hugging Face tensors ``names``; ``layout`` empty: Megatron's own.

    The vocabulary is padded to a multiple of ``vocab_multiple``.

    MappingError where the family has no table, or layers that differ cannot be stacked.
    """
    family, numbers = family_of(config), numbers_of(config, vocab_multiple)
    warnings = []
    given = list(names)
    _require_possible(config, numbers, len(given))
    prefixes = tuple(mtp_prefix(family, numbers, number) for number in range(numbers.mtp))
    if prefixes and not any(name.startswith(prefixes) for name in given):
        warnings.append(
            f"config.json has {numbers.mtp} layers for multi-token prediction, the weights have"
            " none of their tensors: written without them"
        )
        numbers = replace(numbers, mtp=0)
    if layout == "stacked" and 0 < len(numbers.moe) < numbers.layers:
        raise MappingError(
            "--layers stacked: some layers have experts and some have not, so that they cannot"
            " be stacked",
            hint="Leave --layers out: this model is then written per layer.",
        )
    return _rules(config, numbers, layout or default_layout(family, numbers), warnings)


def _require_possible(config: ModelConfig, numbers: Numbers, count: int) -> None:
    """MappingError for what Megatron has no model of, or the config cannot be true of."""
    if numbers.layers > count:
        raise MappingError(
            f"{config.folder / 'config.json'}: num_hidden_layers is {numbers.layers}, but there"
            f" are {count} tensors"
        )
    if ("output_bias" in numbers.flags) != ("mlp_bias" in numbers.flags):
        raise MappingError(
            f"{config.folder / 'config.json'}: a bias in one of attention's output and the MLP;"
            " Megatron has both or none (add_bias_linear)"
        )


def rules_of(config: ModelConfig, keys: Iterable[str]) -> Rules:
    """The rules for a checkpoint with Megatron tensors ``keys``: its layout is seen from them.

    MappingError where the family has no table.
    """
    given = list(keys)
    numbers = numbers_of(config)
    if not any(re.search(r"(^|\.)mtp\.layers\.", key) for key in given):
        numbers = replace(numbers, mtp=0)
    numbered = any(re.search(r"(^|\.)decoder\.layers\.\d+\.", key) for key in given)
    layout = "per-layer" if numbered else "stacked"
    return _rules(config, numbers, layout, [])


def _rules(config: ModelConfig, numbers: Numbers, layout: str, warnings: list[str]) -> Rules:
    family = family_of(config)
    bindings = bindings_of(family, numbers, layout)
    return Rules(config, numbers, layout, bindings, repeats_of(family, numbers), warnings)


def to_megatron(tensors: Tensors, rules: Rules) -> dict[str, ShardedTensor]:
    """The Megatron tensors made of Hugging Face's; every one of both sides is used exactly once.

    MappingError lists every missing, unexpected and misshapen tensor.
    """
    _require_complete(tensors, rules)
    faults = []
    grouped: dict[str, list[Binding]] = {}
    for binding in rules.bindings:
        grouped.setdefault(binding.name, []).append(binding)
        parts = [tensors[name] for name in binding.hf]
        fault = binding.op.fault([part.shape for part in parts])
        if not fault and len({part.dtype for part in parts}) > 1:
            fault = f"of {' and '.join(part.dtype.name for part in parts)}; choose one with --dtype"
        if fault:
            faults.append(f"{', '.join(binding.hf)}: {fault}")
        else:
            faults += _misshapen(binding, tensors)
    if faults:
        raise MappingError(f"{_tensors(faults)} not what config.json says", faults)
    stored = {name: _store(group, tensors, faults) for name, group in grouped.items()}
    if faults:
        raise MappingError(f"{_tensors(faults)} impossible to put together", faults)
    return stored


def from_megatron(tensors: Tensors, rules: Rules) -> dict[str, LazyTensor]:
    """Hugging Face's tensors out of Megatron's: the inverse of :func:`to_megatron`.

    ``tensors`` have exactly the keys of the bindings. MappingError lists every missing, unexpected
    and misshapen tensor.
    """
    wanted = dict.fromkeys(binding.name for binding in rules.bindings)
    faults = [f"missing: {name}" for name in wanted if name not in tensors]
    faults += [f"unexpected: {name}" for name in tensors if name not in wanted]
    if faults:
        raise MappingError("these are not the tensors of this model", faults)
    result: dict[str, LazyTensor] = {}
    slices: dict[tuple[str, Shape], LazyTensor] = {}
    for binding in rules.bindings:
        try:
            whole = _entry(binding, tensors, slices)
            result.update(zip(binding.hf, binding.op.split(whole), strict=True))
        except ValueError as error:
            faults.append(f"{binding.name} {list(tensors[binding.name].shape)}: {error}")
    if faults:
        raise MappingError(f"{_tensors(faults)} not what config.json says", faults)
    return result


def _misshapen(binding: Binding, tensors: Tensors) -> Iterator[str]:
    """The tensors whose shape is not the config's, with both."""
    for name, expected in binding.expected():
        found = tensors[name].shape
        wanted = [at if size is None else size for at, size in zip(found, expected, strict=False)]
        if len(found) != len(expected) or list(found) != wanted:
            sizes = ["?" if size is None else str(size) for size in expected]
            yield f"{name}: {list(found)}, expected [{', '.join(sizes)}]"


def _require_complete(tensors: Tensors, rules: Rules) -> None:
    wanted = {name for binding in rules.bindings for name in binding.hf}
    missing = [name for binding in rules.bindings for name in binding.hf if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    if missing or unexpected:
        counts = [f"{len(missing)} missing"] * bool(missing)
        counts += [f"{len(unexpected)} unexpected"] * bool(unexpected)
        raise MappingError(
            f"{' and '.join(counts)} tensors for a {rules.config.model_type} of"
            f" {rules.numbers.layers} layers, by config.json",
            [f"missing: {name}" for name in missing]
            + [f"unexpected: {name}" for name in unexpected],
            hint="The weights and the config.json beside them are of different models, or the"
            " model is of a kind that is not supported.",
        )


def _tensors(faults: Sequence[str]) -> str:
    return "1 tensor is" if len(faults) == 1 else f"{len(faults)} tensors are"


def _store(group: Sequence[Binding], tensors: Tensors, faults: list[str]) -> ShardedTensor:
    """One Megatron tensor of all its bindings, which must agree in shape and dtype."""
    blocks: list[Block] = []
    shapes, dtypes = [], set()
    for binding in group:
        joined = binding.op.join([tensors[name] for name in binding.hf])
        blocks += _blocks(binding.index, joined)
        shapes.append(_joined_shape(joined))
        dtypes |= {tensor.dtype.name for tensor in joined}
        if shapes[-1] != shapes[0]:
            names = ", ".join(binding.hf)
            faults.append(f"{names}: {list(shapes[-1])} together, the others {list(shapes[0])}")
    if len(dtypes) > 1:
        kinds = " and ".join(sorted(dtypes))
        faults.append(f"{group[0].name}: made of tensors of {kinds}; choose one with --dtype")
    sources = tuple(name for binding in group for name in binding.hf)
    return ShardedTensor(group[0].extent + shapes[0], tuple(blocks), sources)


def _blocks(index: Shape, tensors: Sequence[LazyTensor]) -> Iterator[Block]:
    """Tensors, one after the other along dimension 0, at ``index`` of the leading axes."""
    at = 0
    for tensor in tensors:
        start = (at,) + (0,) * (len(tensor.shape) - 1) if tensor.shape else ()
        yield Block(index + start, tensor)
        at += tensor.shape[0] if tensor.shape else 0


def _joined_shape(tensors: Sequence[LazyTensor]) -> Shape:
    first = tensors[0].shape
    return (sum(tensor.shape[0] for tensor in tensors), *first[1:]) if first else ()


def _entry(
    binding: Binding, tensors: Tensors, slices: dict[tuple[str, Shape], LazyTensor]
) -> LazyTensor:
    """The entry of the leading axes; slices of outer axes are kept, as many entries share them."""
    found = tensors[binding.name]
    if found.shape[: len(binding.extent)] != binding.extent:
        raise ValueError(f"expected {list(binding.extent)} as its first sizes")
    for depth, index in enumerate(binding.index, 1):
        key = (binding.name, binding.index[:depth])
        if depth == len(binding.index):
            return found.select(0, index)
        if key not in slices:
            slices[key] = found.select(0, index)
        found = slices[key]
    return found
