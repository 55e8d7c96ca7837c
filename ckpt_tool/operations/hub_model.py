"""The one way from a checkpoint of any format to the model under its names on the Hub.

Which steps it takes depends on how the format names its tensors: a table of formats says that. Each
step takes a :class:`~ckpt_tool.mapping.hub.form.HubModel` and gives the next; none reads weights
but the proof that a head repeats its embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.frameworks.foreign import set_aside_foreign
from ckpt_tool.mapping.frameworks.nested import (
    choose_group,
    find_prefix,
    rename_tensors,
    strip_prefix,
)
from ckpt_tool.mapping.frameworks.sentence_transformers import take_transformer
from ckpt_tool.mapping.frameworks.torchtitan import from_torchtitan, is_torchtitan
from ckpt_tool.mapping.hub.architecture import name_architecture, warn_of_unknown_class
from ckpt_tool.mapping.hub.filling import Filling, fill_known, fill_rest, make_filling
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.names import apply_family, to_hub, unwrap_all
from ckpt_tool.mapping.hub.truth import refuse_other_part
from ckpt_tool.mapping.hub.value_head import put_value_head, take_value_head
from ckpt_tool.mapping.lora.names import cut_around
from ckpt_tool.mapping.lora.resolve import note_kept_adapters, resolve_adapters
from ckpt_tool.operations.copies import require_equal_copies
from ckpt_tool.operations.megatron_model import take_megatron
from ckpt_tool.operations.options import ModelOptions
from ckpt_tool.operations.plain_model import take_base
from ckpt_tool.operations.request import Heads, Request
from ckpt_tool.operations.source import (
    Source,
    describe_left_out,
    holds_megatron,
    is_adapter_of_peft,
)
from ckpt_tool.operations.tied_head import settle_tied_head, settle_ties, untie_unsaid
from ckpt_tool.readers import find_format
from ckpt_tool.readers.base import Checkpoint, Names


@dataclass(frozen=True)
class Way:
    """How one kind of names becomes the Hub's.

    ``take`` brings the tensors to a model's names in memory, or on the Hub, with adapters resolved;
    ``name`` brings those to the Hub, when heads are set aside or dropped. ``asks_class``: it asks
    transformers where a family has no rules.
    """

    take: Callable[[HubModel, Request], HubModel]
    name: Callable[[HubModel], HubModel]
    asks_class: bool = False


def make_hub_model(
    source: Source,
    config: ModelConfig | None,
    options: ModelOptions,
    team: Team,
    heads: Heads | None = None,
) -> HubModel:
    """The model in a checkpoint of any format, under its names on the Hub.

    Without ``config`` names are kept. With ``heads`` these are settled for a model that is written:
    a head that repeats the embedding is dropped, a value head copied to where classes look for it;
    without, each is where the checkpoint has it, and what the Hub repeats is in ``repeats``. Every
    process of the team calls this. Raises MappingError that lists what does not fit, UsageError
    where an option is for another kind of checkpoint.
    """
    checkpoint, world = source.checkpoint, team.world
    base, whole = _make_whole(source.base, team), _make_whole(source.filler, team)
    way = _choose_way(checkpoint, options)
    absent: Tensors = {}
    if base is not None and way is WAYS["megatron"]:
        base, absent = take_base(base, team)
    request = Request(checkpoint, base, options, heads or Heads(), heads is not None, absent)
    left_out = describe_left_out(checkpoint)
    start = HubModel(dict(checkpoint), config, left_out, warnings=source.warnings)
    model = world.each(lambda: _take(way, start, request))
    require_equal_copies(model, team)
    if model.is_adapter:
        _refuse_filling(options)
        return replace(model, tensors={}, config=None)
    if whole is not None:
        on_hub = way is WAYS["megatron"]
        way = _fill_between(way, world.each(lambda: make_filling(whole, model, on_hub=on_hub)))
    if heads is None:
        named = world.each(lambda: _keep_heads(way.name(take_value_head(model))))
        return settle_ties(named, team, strict=False)
    split = world.each(lambda: take_value_head(model, heads.value))
    if way.asks_class and split.config is not None and split.config.family.hub is None:
        said = replace(split, config=split.config.with_tied(heads.tied))
        return _settle_by_class(said, way, heads, team)
    split = untie_unsaid(split, team) if heads.tied is None and not way.asks_class else split
    settled = settle_tied_head(split, heads.tied, team)
    return world.each(lambda: _finish(way.name(settled), heads))


def _settle_by_class(model: HubModel, way: Way, heads: Heads, team: Team) -> HubModel:
    """The model of a family without rules: its class says what repeats what, if it is known."""
    named = team.world.each(lambda: way.name(model))
    if named.ties is None:
        named = settle_tied_head(named, heads.tied, team)
    else:
        named = settle_ties(named, team)
    return team.world.each(lambda: _finish(named, heads))


def _take(way: Way, start: HubModel, request: Request) -> HubModel:
    """The model in memory, without what is no part of one; it is the config's, not a part alone."""
    _refuse_weights(way, request)
    if start.config is None:
        return way.take(start, request)
    model = way.take(set_aside_foreign(start), request)
    if model.config is not None and not model.is_adapter and request.options.fill_from is None:
        refuse_other_part(model.tensors, model.config)
    return model


def _refuse_weights(way: Way, request: Request) -> None:
    """UsageError for an optimizer's weights that no format but Megatron's has in this way."""
    if request.options.weights == "model" or way is WAYS["megatron"]:
        return
    raise UsageError(
        f"{request.checkpoint.path}: `weights='optimizer'`: a checkpoint of format"
        f" {request.checkpoint.format}; only Megatron's torch_dist has weights there that can be"
        " taken so",
        hint="Leave `weights` out.",
    )


def _make_whole(checkpoint: Checkpoint | None, team: Team) -> HubModel | None:
    """A model folder that was named beside the checkpoint, by its names on the Hub."""
    if checkpoint is None or checkpoint.side_files is None:
        return None
    config = load_config(checkpoint.side_files)
    return make_hub_model(Source(checkpoint), config, ModelOptions(), team, Heads())


def _refuse_filling(options: ModelOptions) -> None:
    if options.fill_from is not None:
        raise UsageError("`fill_from`: adapters alone: there is no model that lacks anything")


def _fill_between(way: Way, filling: Filling) -> Way:
    """The way with what is missing added: before names are changed, and when they are the Hub's."""
    return replace(way, name=lambda model: fill_rest(way.name(fill_known(model, filling)), filling))


def _keep_heads(model: HubModel) -> HubModel:
    return replace(model, tensors=model.tensors | model.head, head={})


def _finish(model: HubModel, heads: Heads) -> HubModel:
    """The model with all that the Hub's form has: what it repeats, and its value head."""
    whole = replace(model, tensors=model.tensors | model.repeats, repeats={})
    return put_value_head(whole, heads.value)


# --- how each kind of names is taken
def _take_memory(model: HubModel, request: Request) -> HubModel:
    """Names of a transformers model in memory; what is nested around them only where it is said."""
    names = request.options.names
    tensors = strip_prefix(model.tensors, names.start) if names.start else model.tensors
    if model.config is not None:
        tensors = take_transformer(unwrap_all(tensors))
    return _resolve(replace(model, tensors=rename_tensors(tensors, names.rename)), request)


def _take_nested(model: HubModel, request: Request) -> HubModel:
    """The same, nested in dictionaries, or spelled as torchtitan does."""
    names, config = request.options.names, model.config
    said = request.checkpoint.groups
    groups = {name: said[name] for name in model.tensors if name in said}
    tensors = strip_prefix(model.tensors, names.start or choose_group(groups))
    if config is not None:
        tensors = unwrap_all(tensors)
    if not names.start:
        tensors = take_transformer(tensors) if config is not None else tensors
        tensors = strip_prefix(tensors, find_prefix(tensors, bare=not groups))
    tensors = rename_tensors(tensors, names.rename)
    named = replace(model, tensors=tensors)
    if config is not None and is_torchtitan(tensors):
        named = from_torchtitan(named)
    return _resolve(named, request)


def _resolve(model: HubModel, request: Request) -> HubModel:
    """The model with its adapters fused, split off, or kept where names are."""
    if model.config is None and request.keeps_adapters:
        if not request.options.keep_names:  # of a comparison
            model = replace(model, tensors=cut_around(model.tensors))
        return note_kept_adapters(model)
    return resolve_adapters(model, request.base, request.options.lora, request.place)


def _take_hub(model: HubModel, request: Request) -> HubModel:
    """Names of the Hub, unless somebody saved a state dict as it was in memory."""
    if model.config is None:
        return model
    return replace(model, tensors=apply_family(model.tensors, model.config) or model.tensors)


# --- how it is named
def _complete_config(model: HubModel) -> HubModel:
    """Names are the Hub's already: the config names the class that they are of."""
    if model.config is None:
        return model
    config = name_architecture(model.tensors, model.config)
    return replace(model, config=config, warnings=(*model.warnings, *warn_of_unknown_class(config)))


def _keep(model: HubModel) -> HubModel:
    return model


#: By whose names a format has, as its row of :data:`ckpt_tool.readers.formats.FORMATS` says.
WAYS: dict[Names, Way] = {
    "memory": Way(_take_memory, to_hub, asks_class=True),
    "nested": Way(_take_nested, to_hub, asks_class=True),
    "megatron": Way(take_megatron, _complete_config),
    "hub": Way(_take_hub, _keep),
}


def _choose_way(checkpoint: Checkpoint, options: ModelOptions) -> Way:
    if holds_megatron(checkpoint):
        return WAYS["megatron"]
    if options.lora.base is not None and is_adapter_of_peft(checkpoint):
        return WAYS["nested"]
    return WAYS[find_format(checkpoint.format).names]
