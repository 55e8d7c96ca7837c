"""A state dict as a training framework holds it -> the model as the Hub has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.table import (
    ARCHITECTURES,
    FAMILIES,
    Rename,
    Rule,
    SplitExperts,
    TransposeExperts,
)
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.transformers_tables import (
    architecture_of,
    classifier_of,
    hub_names,
)
from ckpt_tool.tensors.lazy import LazyTensor

#: Parts that wrappers (FSDP1, torch.compile, activation checkpointing) put into names.
_WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
_LORA = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\.")
_KIND = re.compile(r"For(CausalLM|ConditionalGeneration|(?:Token|Sequence)Classification)$")

Rows = Iterator[tuple[str, LazyTensor]]


def refuse_adapters(names: Iterable[str]) -> None:
    """MappingError where the checkpoint is not one plain model but has LoRA adapters."""
    listed = list(names)
    lora = [name for name in listed if _LORA.search(name) or name.startswith("base_model.model.")]
    if lora:
        raise MappingError(
            f"a LoRA checkpoint: {len(lora)} of {len(listed)} tensors belong to adapters or their"
            " base layers",
            lora,
            hint="Fuse them first: ckpt merge fsdp CKPT OUT",
        )


def unwrapped(tensors: Mapping[str, LazyTensor]) -> Tensors:
    """The tensors by names without the parts of wrappers; MappingError where two then meet."""
    return _collect((plain_name(name), tensor) for name, tensor in tensors.items())


def plain_name(name: str) -> str:
    """A name without what FSDP1, torch.compile and activation checkpointing put into it."""
    return _WRAPPERS.sub("", name)


def to_hub(model: HubModel) -> HubModel:
    """Bring names (and expert layouts) into the form of the Hub, and complete the config.

    A model without a config stays as it is. Raises MappingError where two tensors would get one
    name, or a fused tensor has another shape than its family's.
    """
    if model.config is None:
        return model
    plain = unwrapped(model.tensors)
    config = with_architecture(plain, model.config)
    tensors = by_family(plain, config)
    if tensors is not None:
        said = (*model.warnings, *unknown_class(config))
        return replace(model, tensors=tensors, config=config, warnings=said)
    found = hub_names(plain, config)
    said = (*model.warnings, *found.warnings)
    return replace(model, tensors=found.tensors, config=found.config, warnings=said)


def rename_for_hub(name: str, config: ModelConfig) -> str:
    """The name that a tensor has on the Hub, by its family's rules of names alone."""
    for rule in FAMILIES.get(config.model_type, ()):
        if isinstance(rule, Rename) and _matches(rule, name):
            return name.replace(rule.old, rule.new, 1)
    return name


def _matches(rule: Rename, name: str) -> bool:
    return name.startswith(rule.old) or (not rule.start and rule.old in name)


def by_family(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> Tensors | None:
    """The tensors as the family's own table has them on the Hub; None where it has no table.

    What is in the Hub's form already stays as it is. Raises what :func:`to_hub` raises.
    """
    rules = FAMILIES.get(config.model_type)
    if rules is None:
        return None
    given = dict(tensors)
    return _collect(row for name in given for row in _apply(rules, name, given))


def _collect(rows: Iterable[tuple[str, LazyTensor]]) -> Tensors:
    """Rows as a dict; MappingError where a name comes twice."""
    result: Tensors = {}
    twice = []
    for name, tensor in rows:
        if name in result:
            twice.append(name)
        result[name] = tensor
    if twice:
        raise MappingError(f"{len(twice)} names would be written twice", twice)
    return result


def _apply(rules: tuple[Rule, ...], name: str, tensors: Tensors) -> Rows:
    tensor = tensors[name]
    for rule in rules:
        if isinstance(rule, Rename):
            if _matches(rule, name):
                yield name.replace(rule.old, rule.new, 1), tensor
                return
        elif name.endswith((f".{rule.path}.gate_up_proj", f".{rule.path}.down_proj")):
            if isinstance(rule, TransposeExperts):
                flip = _is_memory_layout(name, tensors)
                yield name, tensor.transpose(1, 2) if flip else tensor
            else:
                yield from _split(rule, name, tensors)
            return
    yield name, tensor


def _split(rule: SplitExperts, name: str, tensors: Tensors) -> Rows:
    if not _is_memory_layout(name, tensors):
        raise MappingError(
            f"{name}: shape {list(tensors[name].shape)}, expected experts as transformers 5 holds"
            " them: gate_up_proj [E, 2I, H] and down_proj [E, H, I]"
        )
    stem, _, kind = name.rpartition(".")
    stem = stem.removesuffix(rule.path) + rule.target
    for index in range(tensors[name].shape[0]):
        expert = tensors[name].select(0, index)
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
    gate_up, down = (tensors.get(f"{stem}.{kind}") for kind in ("gate_up_proj", "down_proj"))
    if gate_up is None or down is None or {len(gate_up.shape), len(down.shape)} != {3}:
        raise MappingError(f"{stem}: expected gate_up_proj and down_proj with three dimensions")
    experts, a, b = gate_up.shape
    also, c, d = down.shape
    in_memory, on_hub = (b, a) == (c, 2 * d), (a, b) == (d, 2 * c)
    if in_memory == on_hub or experts != also:
        raise MappingError(
            f"{stem}: shapes {list(gate_up.shape)} and {list(down.shape)} fit no layout of experts"
        )
    return in_memory


def with_architecture(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> ModelConfig:
    """The config naming the class that these tensors, by their names on the Hub, are of.

    A head called ``score`` in place of ``lm_head`` is a classifier's (critics, reward models),
    whatever class the config was copied from: with a bias for tokens, without for sequences.
    """
    named = config.architecture or ARCHITECTURES.get(config.model_type, "")
    if not named:
        named = architecture_of(config)
    score = tensors.get("score.weight")
    family = _KIND.sub("", named)
    if score is not None and "lm_head.weight" not in tensors and family != named:
        kind = "Token" if "score.bias" in tensors else "Sequence"
        if not named.endswith(f"For{kind}Classification"):
            named = classifier_of(config, kind) or f"{family}For{kind}Classification"
        config = with_labels(config, score.shape[0])
    if named and named != config.architecture:
        config = config.with_changes(architectures=[named])
    return config


def unknown_class(config: ModelConfig) -> list[str]:
    """A warning where the config names a classifier that transformers does not have."""
    kind = _KIND.search(config.architecture)
    if kind is None or not kind[1].endswith("Classification"):
        return []
    if classifier_of(config, kind[1].removesuffix("Classification")) or "auto_map" in config.raw:
        return []
    return [
        f"the installed transformers has no {config.architecture}, which these weights are of:"
        " its Auto classes do not open them"
    ]


def with_labels(config: ModelConfig, count: int) -> ModelConfig:
    """The config with ``count`` labels; transformers assumes two where it names none."""
    if len(config.raw.get("id2label") or (0, 1)) == count:
        return config
    labels = {str(index): f"LABEL_{index}" for index in range(count)}
    return config.with_changes(
        id2label=labels, label2id={label: int(index) for index, label in labels.items()}
    )
