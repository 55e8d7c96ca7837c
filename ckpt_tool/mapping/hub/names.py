"""A state dict as a training framework holds it -> the model as the Hub has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.hub_rules import Rename, Rule, SplitExperts, TransposeExperts
from ckpt_tool.mapping.hub.architecture import name_architecture, warn_of_unknown_class
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.transformers_tables import name_by_transformers
from ckpt_tool.mapping.renaming import rename_all
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat

#: Parts that wrappers (FSDP1, torch.compile, activation checkpointing) put into names.
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
_PARALLEL = "module."
_GATE = "gate_proj"
_MEMORY = "[E, 2I, H] and down_proj [E, H, I]"

Rows = Iterator[tuple[str, LazyTensor]]


def unwrap_names(tensors: Mapping[str, LazyTensor]) -> Tensors:
    """The tensors by names without the parts of wrappers; MappingError where two then meet."""
    return rename_all(tensors, unwrap_name)


def unwrap_all(tensors: Mapping[str, LazyTensor]) -> Tensors:
    """The same, and without what DistributedDataParallel puts before all of them.

    That is a word which models have as well, so it goes only where every name begins with it.
    """
    plain = unwrap_names(tensors)
    while plain and all(name.startswith(_PARALLEL) for name in plain):
        plain = {name.removeprefix(_PARALLEL): tensor for name, tensor in plain.items()}
    return plain


def unwrap_name(name: str) -> str:
    """A name without what FSDP1, torch.compile and activation checkpointing put into it."""
    return _WRAPPERS.sub("", name)


def to_hub(model: HubModel) -> HubModel:
    """Bring names (and expert layouts) into the form of the Hub, and complete the config.

    A model without a config stays as it is. Raises MappingError where two tensors would get one
    name, a fused tensor has another shape than its family's, or names are not known: see
    :func:`name_by_transformers`.
    """
    if model.config is None:
        return model
    plain = unwrap_names(model.tensors)
    config = name_architecture(plain, model.config)
    tensors = apply_family(plain, config)
    if tensors is not None:
        said = (*model.warnings, *warn_of_unknown_class(config))
        return replace(model, tensors=tensors, config=config, warnings=said)
    found = name_by_transformers(plain, config)
    said = (*model.warnings, *found.warnings)
    dropped = model.dropped | found.dropped
    named = replace(model, tensors=found.tensors, config=found.config, dropped=dropped)
    return replace(named, warnings=said, ties=found.ties)


def apply_family(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> Tensors | None:
    """The tensors as the family's own rules have them on the Hub; None where it has no rules.

    What is in the Hub's form already stays as it is. Raises what :func:`to_hub` raises of fused
    tensors and of names that two would get.
    """
    rules = config.family.hub
    if rules is None:
        return None
    given = _join_stacks(tensors, rules)
    return _collect(row for name in given for row in _apply(rules, name, given))


def _join_stacks(tensors: Mapping[str, LazyTensor], rules: Sequence[Rule]) -> Tensors:
    """The tensors with gate and up of all experts in one, as transformers 5 has them in memory.

    In VeOmni up to 0.1.4 they are two, [E, I, H] each; ``down_proj`` is [E, H, I] in both.
    MappingError lists those that do not belong together.
    """
    ends = tuple(f".{rule.path}.{_GATE}" for rule in rules if isinstance(rule, SplitExperts))
    found = dict(tensors)
    faults = []
    for name in [name for name in tensors if ends and name.endswith(ends)]:
        stem = name.removesuffix(_GATE)
        gate, up = found.pop(name), found.pop(f"{stem}up_proj", None)
        down = found.get(f"{stem}down_proj")
        shapes = [part.shape if part is not None else () for part in (gate, up, down)]
        known = _are_stacks(*shapes) and f"{stem}gate_up_proj" not in found
        if known and up is not None and gate.dtype == up.dtype:
            found[f"{stem}gate_up_proj"] = cat([gate, up], 1)
        else:
            said = ", ".join(str(list(shape)) if shape else "none" for shape in shapes)
            faults.append(f"{stem}{{gate_proj,up_proj,down_proj}}: {said}")
    if faults:
        raise MappingError(
            "stacks of experts that do not belong together, expected [E, I, H], [E, I, H] and"
            " [E, H, I], of one dtype and without a gate_up_proj",
            faults,
        )
    return found


def _are_stacks(gate: Shape, up: Shape, down: Shape) -> bool:
    return len(gate) == 3 and up == gate and down == (gate[0], gate[2], gate[1])


def split_fused(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> Tensors:
    """The tensors with each expert by itself, where the family's are fused on the Hub as well.

    Raises what :func:`to_hub` raises of fused tensors and of names that two would get.
    """
    rules = [
        replace(rule, stays=False)
        for rule in config.family.hub or config.family.compared
        if isinstance(rule, SplitExperts) and rule.stays
    ]
    given = dict(tensors)
    return _collect(row for name in given for row in _apply(rules, name, given))


def is_fused(name: str, config: ModelConfig) -> bool:
    """Whether a tensor has all experts of a layer that may be on the Hub one by one, or so."""
    rule = _find_expert_rule(config.family.hub or config.family.compared, name)
    return isinstance(rule, SplitExperts) and rule.stays


def rename_for_hub(name: str, config: ModelConfig) -> str:
    """The name on the Hub of a tensor that is called ``name`` in memory, by its family's rules.

    Of one tensor that stays one: those of fused experts, and names of families without rules, are
    returned as they are.
    """
    return _rename(config.family.hub or (), name)


def _collect(rows: Iterable[tuple[str, LazyTensor]]) -> Tensors:
    """Rows as a dict; MappingError where a name comes twice."""
    result: Tensors = {}
    twice = []
    for name, tensor in rows:
        if name in result:
            twice.append(name)
        result[name] = tensor
    if twice:
        raise MappingError(f"{count_noun(len(twice), 'name')} would be written twice", twice)
    return result


def _apply(rules: Sequence[Rule], name: str, tensors: Tensors) -> Rows:
    """What becomes of one tensor: fused experts by their rule, anything else by its name."""
    rule = _find_expert_rule(rules, name)
    if isinstance(rule, SplitExperts) and rule.stays:
        rule = None
    if rule is None:
        yield _rename(rules, name), tensors[name]
    elif isinstance(rule, SplitExperts):
        yield from _split(rule, name, tensors)
    elif _is_memory_layout(name, tensors):
        yield name, tensors[name].transpose(1, 2)
    else:
        yield name, tensors[name]


def _rename(rules: Sequence[Rule], name: str) -> str:
    """The name by the first rule that is about a part of it."""
    for rule in rules:
        if not isinstance(rule, Rename):
            continue
        if name.startswith(rule.old) or (not rule.start and rule.old in name):
            return name.replace(rule.old, rule.new, 1)
    return name


def _find_expert_rule(rules: Sequence[Rule], name: str) -> SplitExperts | TransposeExperts | None:
    for rule in rules:
        if isinstance(rule, Rename):
            continue
        if name.endswith((f".{rule.path}.gate_up_proj", f".{rule.path}.down_proj")):
            return rule
    return None


def _split(rule: SplitExperts, name: str, tensors: Tensors) -> Rows:
    if _is_memory_layout(name, tensors) == rule.turned:
        layout = "[E, H, 2I] and down_proj [E, I, H]" if rule.turned else _MEMORY
        raise MappingError(
            f"{name}: shape {list(tensors[name].shape)}, expected experts as transformers 5 holds"
            f" them: gate_up_proj {layout}"
        )
    stem, _, kind = name.rpartition(".")
    stem = stem.removesuffix(rule.path) + rule.target
    for index in range(tensors[name].shape[0]):
        expert = tensors[name].select(0, index)
        expert = expert.transpose(0, 1) if rule.turned else expert
        if kind == "gate_up_proj":
            half = expert.shape[0] // 2
            yield f"{stem}.{index}.{rule.gate}.weight", expert.narrow(0, 0, half)
            yield f"{stem}.{index}.{rule.up}.weight", expert.narrow(0, half, half)
        else:
            yield f"{stem}.{index}.{rule.down}.weight", expert


def _is_memory_layout(name: str, tensors: Tensors) -> bool:
    """Whether fused experts are [E, 2I, H] and [E, H, I] (transformers 5), not transposed.

    gate_up alone cannot tell when 2I = H, down alone not when I = H; together they can.
    """
    stem = name.rpartition(".")[0]
    fused = (f"{stem}.gate_up_proj", f"{stem}.down_proj")
    shapes = [tensors[found].shape for found in fused if found in tensors]
    if len(shapes) != 2 or any(len(shape) != 3 for shape in shapes):
        raise MappingError(f"{stem}: expected gate_up_proj and down_proj with three dimensions")
    gate_up, down = shapes
    experts, a, b = gate_up
    also, c, d = down
    in_memory, on_hub = (b, a) == (c, 2 * d), (a, b) == (d, 2 * c)
    if in_memory == on_hub or experts != also:
        raise MappingError(
            f"{stem}: shapes {list(gate_up)} and {list(down)} fit no layout of experts"
        )
    return in_memory
