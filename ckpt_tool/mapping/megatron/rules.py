"""The rules of one model: every tensor of both sides, as its config and its tensors say."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import MTP_KEYS, ModelConfig
from ckpt_tool.mapping.megatron.bindings import (
    NO_TOWERS,
    Binding,
    choose_layout,
    format_mtp_prefix,
    make_bindings,
)
from ckpt_tool.mapping.megatron.gemma4_names import name_modules
from ckpt_tool.mapping.megatron.layouts import require_layout
from ckpt_tool.mapping.megatron.numbers import Numbers, read_numbers, require_rows
from ckpt_tool.mapping.megatron.ops import Same
from ckpt_tool.mapping.megatron.packing import count_experts, find_forms, use_forms
from ckpt_tool.mapping.megatron.repeats import Repeat, find_repeats
from ckpt_tool.mapping.megatron.respelling import respell, spell_numbers
from ckpt_tool.mapping.megatron.shared_kv import keep_given
from ckpt_tool.mapping.megatron.split_ops import RowsSplit
from ckpt_tool.mapping.megatron.towers import find_towers, takes_modules
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Rules:
    """The bindings of one model. ``layout``: one of :data:`LAYOUTS`."""

    config: ModelConfig
    numbers: Numbers
    layout: str
    bindings: list[Binding]
    repeats: list[Repeat]
    warnings: list[str]


def make_rules(
    config: ModelConfig,
    names: Iterable[str],
    layout: str = "",
    vocab_multiple: int = 1,
    tower: str = "",
) -> Rules:
    """The rules for a model with Hugging Face tensors ``names``; ``layout`` empty: Megatron's own.

    The vocabulary is padded to a multiple of ``vocab_multiple``. ``tower``: one of
    :data:`~ckpt_tool.mapping.megatron.towers.TOWERS`, empty for what Megatron-Bridge has.

    MappingError where the family has no table or no such tower, or layers that differ cannot be
    stacked.
    """
    family, numbers = require_rows(config), read_numbers(config, vocab_multiple)
    warnings = []
    given = frozenset(names)
    _require_possible(config, numbers, len(given))
    numbers = use_forms(numbers, find_forms(family, given))
    if "by_kind" in numbers.flags:
        numbers = replace(numbers, kinds=keep_given(numbers.kinds, family.around.trunk, given))
    _require_held(config, numbers, len(given), len(given))
    numbers = _count_ahead(config, numbers, given, family.mtp.prefix)
    if "score.weight" in given:
        numbers = _put_value_head(numbers, "score.bias" in given)
    prefixes = tuple(format_mtp_prefix(family, numbers, number) for number in range(numbers.mtp))
    if prefixes and not any(name.startswith(prefixes) for name in given):
        warnings.append(
            f"{config.path} has {count_noun(numbers.mtp, 'layer')} for multi-token prediction, the"
            " weights have no tensor of it: written without"
        )
        numbers = replace(numbers, mtp=0)
    require_layout(layout, config, numbers)
    always = family.around.has_radio
    apart = always or takes_modules(config, tower)
    towers = find_towers(config, given) if apart else NO_TOWERS
    if towers and not always:
        numbers = replace(numbers, vision_layers=0, vision_mergers=0)
    layout = layout or choose_layout(family, numbers)
    bindings = make_bindings(family, numbers, layout, towers)
    return Rules(config, numbers, layout, bindings, find_repeats(family, numbers), warnings)


def _count_ahead(
    config: ModelConfig, numbers: Numbers, names: Iterable[str], prefix: str
) -> Numbers:
    """As many layers for multi-token prediction as there are, where the config need not say it."""
    is_said = any(config.text.get(key) is not None for key in MTP_KEYS)
    if "mtp_unsaid" not in numbers.flags or is_said:
        return numbers
    before, _, after = map(re.escape, prefix.partition("{number}"))
    layer = re.compile(rf"{before}(\d+){after}")
    found = {matched[1] for matched in map(layer.match, names) if matched}
    return replace(numbers, mtp=len(found))


def _require_possible(config: ModelConfig, numbers: Numbers, count: int) -> None:
    """MappingError for what Megatron has no model of, or the config cannot be true of."""
    if numbers.layers > count:
        raise MappingError(
            f"{config.path}: num_hidden_layers is {numbers.layers}, of a model of"
            f" {count_noun(count, 'tensor')}"
        )
    if ("output_bias" in numbers.flags) != ("mlp_bias" in numbers.flags):
        raise MappingError(
            f"{config.path}: a bias in one of attention's output and the MLP;"
            " Megatron has both or none (add_bias_linear)"
        )


def _require_held(config: ModelConfig, numbers: Numbers, layers: int, experts: int) -> None:
    """MappingError where the config says more layers or experts than tensors can have.

    ``layers`` and ``experts`` of all layers together: the most that there can be. All that follows
    takes time and memory for what the config says.
    """
    said = {
        "layers": (numbers.layers + numbers.mtp + numbers.vision_layers, layers),
        "experts": (count_experts(require_rows(config), numbers), experts),
    }
    for what, (count, most) in said.items():
        if count > most:
            raise MappingError(
                f"{config.path}: {count:,} {what} in all, but the tensors have no more than"
                f" {most:,}: the weights and the config.json are of different models"
            )


def _count_held(tensors: Mapping[str, LazyTensor], word: str, axes: int) -> int:
    """How many of something tensors have at most, each by itself or stacked in leading axes."""
    stacked = (tensor.shape[:axes] for name, tensor in tensors.items() if word in name)
    return len(tensors) + sum(map(prod, stacked))


def infer_rules(
    config: ModelConfig, tensors: Mapping[str, LazyTensor], *, tied: bool | None = None
) -> Rules:
    """The rules for a checkpoint with these Megatron tensors, from which its layout is seen.

    So is its head: a language model's, a value model's of one row, or none where ``tied`` (by
    default what the config says). MappingError where the family has no table.
    """
    family, numbers = require_rows(config), use_forms(read_numbers(config), config.forms)
    layers, experts = _count_held(tensors, "layers.", 1), _count_held(tensors, "experts.", 2)
    _require_held(config, numbers, layers, experts)
    prefix = family.around.prefix
    numbers = _count_ahead(config, numbers, tensors, f"{prefix}mtp.layers.{{number}}.")
    if not any(key.startswith(f"{prefix}mtp.layers.") for key in tensors):
        numbers = replace(numbers, mtp=0)
    head = tensors.get(f"{prefix}output_layer.weight")
    _refuse_labels(config, numbers, head, tensors.get(f"{prefix}embedding.word_embeddings.weight"))
    if head is not None and head.shape[:1] == (1,) and numbers.vocab_size > 1:
        numbers = _put_value_head(numbers, f"{prefix}output_layer.bias" in tensors)
    elif head is not None or not (config.tied if tied is None else tied):
        numbers = replace(numbers, flags=numbers.flags | {"untied"})
    else:
        numbers = replace(numbers, flags=numbers.flags - {"untied"})
    numbers = spell_numbers(numbers, tensors) if numbers.kinds else numbers
    layout, vision = (
        find_layout(tensors, name) for name in (prefix, f"{family.around.outside}vision_model.")
    )
    towers = find_towers(config, tensors, in_megatron=True)
    bindings = make_bindings(family, numbers, layout, towers, vision)
    bindings = [respell(each, numbers, tensors) for each in bindings]
    bindings = list(map(partial(_use_whole, names=tensors), bindings))
    if "by_kind" in numbers.flags:
        bindings = name_modules(bindings, tensors, experts=bool(numbers.moe))
    return Rules(config, numbers, layout, bindings, find_repeats(family, numbers), [])


def _use_whole(binding: Binding, names: Collection[str]) -> Binding:
    """The binding to the one tensor whose parts it has, where ``names`` have that in their place.

    So ranks have it, and what they write each for itself.
    """
    whole = binding.names[0].rpartition(".")[0]
    if not isinstance(binding.op, RowsSplit) or whole not in names:
        return binding
    return replace(binding, names=(whole,), op=Same(), wholes=())


def find_layout(names: Collection[str], prefix: str = "") -> str:
    """How the layers of a whole model are laid out, by its keys: one of :data:`LAYOUTS`."""
    if f"{prefix}decoder.final_norm.weight" in names:
        return "hybrid"
    numbered = re.compile(rf"{re.escape(prefix)}decoder\.layers\.\d+\.")
    return "per-layer" if any(map(numbered.match, names)) else "stacked"


def spell_as(rules: Rules, keys: Collection[str]) -> Rules:
    """The rules of the same model as the trainer stores it that has ``keys``."""
    if not keys or not rules.numbers.kinds:
        return rules
    numbers = spell_numbers(rules.numbers, keys)
    towers = {one.hf[0]: one.names[0] for one in rules.bindings if one.foreign}
    bindings = make_bindings(require_rows(rules.config), numbers, rules.layout, towers)
    return replace(rules, numbers=numbers, bindings=bindings)


def _refuse_labels(
    config: ModelConfig, numbers: Numbers, head: LazyTensor | None, embedding: LazyTensor | None
) -> None:
    """MappingError for the head of a classifier with several labels, by its rows.

    A language model's has those of the embedding, of whichever vocabulary.
    """
    rows = head.shape[0] if head is not None and head.shape else 0
    if not 1 < rows < numbers.vocab_size or (
        embedding is not None and embedding.shape[:1] == (rows,)
    ):
        return
    raise MappingError(
        f"output_layer.weight has {rows} rows, as a classifier's with {rows} labels: {config.path}"
        f" has a vocabulary of {numbers.vocab_size}",
        hint="Read are heads of language models and of one row, as a value model's. The weights of"
        " a classifier are written by Megatron's names with `keep_names=True`.",
    )


def _put_value_head(numbers: Numbers, bias: bool) -> Numbers:
    """A model with a score of one row in place of a language model's head."""
    flags = numbers.flags - {"untied"} | {"value"} | ({"value_bias"} if bias else set())
    return replace(numbers, flags=flags)
