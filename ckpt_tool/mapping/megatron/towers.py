"""Towers that trainers take from transformers: the same on both sides, under what prefixes.

Megatron-Bridge has them beside the language model, below ``thinker.`` in Omni models; slime as they
are in memory; ms-swift in a module ``visual``, whichever they are. Sources: ``*_vl/`` and
``qwen_omni/`` of Megatron-Bridge 0.6.2, ``mm_gpts/`` of mcore_bridge 1.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.megatron_form import Around
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.mapping.renaming import rename_all
from ckpt_tool.tensors.lazy import LazyTensor

#: Whose names and layout a tower has: those of Megatron's modules, or of transformers'.
TOWERS = ("megatron", "transformers")

_ABSENT = "no part of Megatron's model: a merge takes it from this model with `fill_from`"

#: What is before all names: of wrappers, of transformers' models in memory, of Omni models.
_AROUND = r"(?:(?:module|model)\.)*(?:thinker\.)?(?:(?:module|model)\.)*"
_LANGUAGE = re.compile(rf"{_AROUND}language_model\.")
_START = re.compile(rf"{_AROUND}")


def takes_modules(config: ModelConfig, tower: str) -> bool:
    """Whether a tower is written as transformers' modules are, by what is asked for.

    MappingError where the family's cannot be written so.
    """
    around = require_rows(config).around
    known = {"megatron": around.vision is not None, "transformers": bool(around.towers)}
    if tower and not known[tower]:
        raise MappingError(
            f"`tower={tower!r}`: a {config.model_type} has no tower that is written so",
            hint="Leave `tower` out.",
        )
    return tower == "transformers" or (not tower and not around.native)


def find_towers(
    config: ModelConfig, names: Iterable[str], *, in_megatron: bool = False
) -> dict[str, str]:
    """The tensors of towers, by their names on the Hub, with Megatron's.

    ``names``: those of the Hub, or Megatron's. MappingError where a tower has none; of a family
    that has rows of its tower, there may be none at all.
    """
    around = require_rows(config).around
    found: dict[str, str] = {}
    absent = []
    given = sorted(names)
    prefixes = around.megatron_towers if in_megatron else around.towers
    for own, hub, megatron in zip(prefixes, around.towers, around.megatron_towers, strict=True):
        longer = tuple(each for each in prefixes if each != own and each.startswith(own))
        mine = (name for name in given if name.startswith(own) and not name.startswith(longer))
        ends = [name.removeprefix(own) for name in mine]
        found |= {hub + end: megatron + end for end in ends}
        by = around.towers_by.get(hub)
        absent += [] if ends or (by and not config.raw.get(by)) else [own]
    if absent and (around.vision is None or around.has_radio):
        raise MappingError(
            f"{' and '.join(absent)}: none of their tensors is there, but a {config.model_type}"
            f" has some, by {config.path}"
        )
    return dict(sorted(found.items()))


def leave_out_absent(model: HubModel, around: Around) -> HubModel:
    """The model without what no model of Megatron's has; those names and the reason are kept."""
    rest = set(filter(around.lacks, model.tensors))
    kept = {name: tensor for name, tensor in model.tensors.items() if name not in rest}
    return replace(model, tensors=kept, dropped=model.dropped | dict.fromkeys(rest, _ABSENT))


def use_tower_names(tensors: Mapping[str, LazyTensor], around: Around) -> Mapping[str, LazyTensor]:
    """The tensors with the towers' names, and what is before all of them, as the tables have it.

    MappingError where two then have one name.
    """
    if not around.towers:
        return tensors
    spelled = _list_spellings(around)

    def rename(name: str) -> str:
        own = _name_tower(name, spelled)
        if own is None:
            own = _LANGUAGE.sub(around.prefix, name, count=1) if _LANGUAGE.match(name) else name
        return own

    return rename_all(tensors, rename)


def _list_spellings(around: Around) -> dict[str, str]:
    """What may be before the tensors of a tower, without what is around the model, and ours."""
    pairs = zip(around.towers, around.megatron_towers, strict=True)
    found = {}
    for hub, megatron in pairs:
        for spelled in (hub, megatron):
            found[_START.sub("", spelled, count=1)] = megatron
    return found


def _name_tower(name: str, spelled: Mapping[str, str]) -> str | None:
    """The name of a tower's tensor as the tables have it; None where it is none."""
    start = _START.match(name)
    rest = name[start.end() :] if start else name
    for inner in (rest.removeprefix("visual."), rest):
        for bare, megatron in spelled.items():
            if inner.startswith(bare):
                return megatron + inner.removeprefix(bare)
    return None
