"""torchtitan's names of a model -> those of Hugging Face, by the rows of the model's family.

Names of 0.2 and of 0.3 are read alike: a name is spelled as the rows have it, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.families.torchtitan_rows import SPELLINGS, TOP, TitanRow, TitanRows
from ckpt_tool.mapping.frameworks.foreign import sum_up
from ckpt_tool.mapping.frameworks.torchtitan_ops import make_op
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.tensors.lazy import LazyTensor

_EMBEDDING = "tok_embeddings.weight"
_LAYER = re.compile(r"(mtp_)?layers\.([0-9]{1,9})\.")
_SEVERAL = re.compile(r"\{([^{}]*,[^{}]*)\}")
_EXPERT = "{e}"
_UNNAMED = "balances the load of experts in training; the family's class has no such tensor"
_OTHER = "The weights and the config.json are of different models, or tensors are missing."


@dataclass(frozen=True)
class _Place:
    """A row with its names spelled out: ``titan`` are put together to ``hf``."""

    row: TitanRow
    titan: tuple[str, ...]
    hf: tuple[str, ...]


@dataclass
class _Group:
    """The tensors of one place in one layer: by the rows' names, with those that they have."""

    place: _Place
    prefix: str
    found: dict[str, tuple[str, LazyTensor]] = field(default_factory=dict)

    @property
    def names(self) -> str:
        """Their names in the checkpoint."""
        return ", ".join(name for name, _ in self.found.values())


def is_torchtitan(names: Mapping[str, object]) -> bool:
    """Whether a model is named as torchtitan names it."""
    return _EMBEDDING in names


def from_torchtitan(model: HubModel) -> HubModel:
    """The model by Hugging Face's names, in its layouts; what the family has not, left out.

    MappingError for a family without rows; and one that lists all that a model of the family has
    not, that comes twice, or that is not what its config says.
    """
    config = model.config
    assert config is not None
    groups, unknown = _group(model.tensors, _require_rows(config), config)
    if unknown:
        raise MappingError(
            f"{count_noun(len(unknown), 'tensor')} that torchtitan's {config.model_type} has not",
            unknown,
            hint="Leave tensors out with `names.select`, or name them with `names.rename`.",
        )
    faults = [fault for group in groups for fault in _find_missing(group)]
    if faults:
        _refuse(faults, config)
    unnamed = {name: _UNNAMED for g in groups if not g.place.hf for name, _ in g.found.values()}
    tensors = _convert([group for group in groups if group.place.hf], config)
    dropped = model.dropped | sum_up(unnamed)
    return replace(model, tensors=tensors, dropped=dropped, repeats=_find_repeats(tensors, config))


def spell(name: str) -> str:
    """A name of any version of torchtitan, as the rows have it."""
    for pattern, new in SPELLINGS:
        name = pattern.sub(new, name)
    return name


def _require_rows(config: ModelConfig) -> TitanRows:
    if config.family.torchtitan is not None:
        return config.family.torchtitan
    known = [name for name, family in FAMILIES.items() if family.torchtitan]
    raise MappingError(
        "names as torchtitan has them (tok_embeddings, layers.N.attention.wq), of a"
        f" {config.model_type}: known for {', '.join(known)}",
        hint="Name them as transformers does with `names.rename`, like"
        " `names.rename=['layers.*.attention.wq=model.layers.*.self_attn.q_proj']`, if the rows"
        " of query and key are in its order.",
    )


# --- which tensors belong together
def _group(
    tensors: Mapping[str, LazyTensor], rows: TitanRows, config: ModelConfig
) -> tuple[list[_Group], list[str]]:
    """The tensors by rows and layers, and the names that no row has; MappingError for a double."""
    tables = [_spell_out(table) for table in (TOP, rows.layer, (*rows.layer, *rows.mtp))]
    groups: dict[tuple[str, _Place], _Group] = {}
    unknown, twice = [], []
    for name, tensor in tensors.items():
        spelled = spell(name)
        matched = _LAYER.match(spelled)
        below = spelled[matched.end() :] if matched else spelled
        kind = 0 if matched is None else 2 if matched[1] else 1
        place = tables[kind].get(below) if kind < 2 or rows.mtp else None
        if place is None:
            unknown.append(name)
            continue
        prefix = rows.base + (_find_layer(matched, config) if matched else "")
        group = groups.setdefault((prefix, place), _Group(place, prefix))
        if below in group.found:
            twice.append(f"{name}: also {group.found[below][0]}")
        group.found[below] = name, tensor
    if twice:
        raise MappingError(f"{count_noun(len(twice), 'tensor')} named in two ways", twice)
    return list(groups.values()), unknown


def _find_layer(matched: re.Match[str], config: ModelConfig) -> str:
    """A layer's prefix on the Hub, where those for multi-token prediction come after the others."""
    if not matched[1]:
        return f"model.layers.{matched[2]}."
    before = Fields(config.text, config.path).size("num_hidden_layers")
    return f"model.layers.{before + int(matched[2])}."


def _spell_out(rows: Sequence[TitanRow]) -> dict[str, _Place]:
    """The places of rows, by each name that is in one."""
    places = [
        _Place(row, _list_names(row.titan, kind), _list_names(row.hf, kind))
        for row in rows
        for kind in (("weight", "bias") if row.titan.endswith("*") else ("",))
    ]
    return {name: place for place in places for name in place.titan}


def _list_names(pattern: str, kind: str) -> tuple[str, ...]:
    """The names that a pattern of a row stands for; nothing for an empty one."""
    if not pattern:
        return ()
    parts = _SEVERAL.split(pattern.removesuffix("*") + kind)
    choices = [part.split(",") if at % 2 else [part] for at, part in enumerate(parts)]
    return tuple("".join(chosen) for chosen in product(*choices))


def _find_missing(group: _Group) -> Iterator[str]:
    for name in group.place.titan:
        if name not in group.found:
            yield f"{group.names}: without the {name} of its layer"


# --- what becomes of them
def _convert(groups: Sequence[_Group], config: ModelConfig) -> Tensors:
    """Hugging Face's tensors; MappingError lists what does not fit, or would be written twice."""
    ops = {kind: make_op(kind, config) for kind in {group.place.row.op for group in groups}}
    result: Tensors = {}
    faults = []
    for group in groups:
        given = [group.found[name][1] for name in group.place.titan]
        try:
            made = ops[group.place.row.op].to_hub(given)
        except ValueError as error:
            faults.append(f"{group.names}: {error}")
            continue
        for name, tensor in zip(_name(group, len(made)), made, strict=True):
            if name in result:
                faults.append(f"{group.names}: {name} is made of other tensors too")
            result[name] = tensor
    if faults:
        _refuse(faults, config)
    return result


def _name(group: _Group, count: int) -> list[str]:
    """The names of what a group has become, on the Hub."""
    names = group.place.hf
    if _EXPERT in names[0]:
        names = tuple(names[0].replace(_EXPERT, str(number)) for number in range(count))
    return [f"{group.prefix}{name}" for name in names]


def _refuse(faults: Sequence[str], config: ModelConfig) -> None:
    raise MappingError(
        f"{count_noun(len(faults), 'fault')} in tensors named by torchtitan, as {config.path}"
        f" says of a {config.model_type}",
        faults,
        hint=_OTHER,
    )


def _find_repeats(tensors: Tensors, config: ModelConfig) -> Tensors:
    """What layers for multi-token prediction repeat on the Hub: the embedding, and the head."""
    embedding = tensors.get("model.embed_tokens.weight")
    head = tensors.get("lm_head.weight", embedding)
    found: Tensors = {}
    for name in tensors:
        layer, is_last, _ = name.partition("shared_head.norm.weight")
        if is_last and embedding is not None and head is not None:
            found[f"{layer}embed_tokens.weight"] = embedding
            found[f"{layer}shared_head.head.weight"] = head
    return found
