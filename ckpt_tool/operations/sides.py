"""The two sides of a comparison: checkpoints proven complete, by their names on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.remote.shadow import reach, recall, spell
from ckpt_tool.mapping.casting import find_main_dtype
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.heads import find_only_embedding, is_head
from ckpt_tool.mapping.hub.names import is_fused, split_fused
from ckpt_tool.mapping.hub.saved_names import spell_alike
from ckpt_tool.mapping.hub.value_head import match_heads
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.mapping.quantised import (
    Kind,
    dequantise_weights,
    list_kinds,
    set_aside_cache_scales,
)
from ckpt_tool.operations.beside import open_base, open_filler
from ckpt_tool.operations.hub_model import make_hub_model
from ckpt_tool.operations.options import ModelOptions, NameOptions
from ckpt_tool.operations.replicas import prove_replicas
from ckpt_tool.operations.repositories import settle_repositories
from ckpt_tool.operations.runs import choose_steps
from ckpt_tool.operations.side_options import share_out
from ckpt_tool.operations.source import (
    Source,
    describe_left_out,
    find_config,
    holds_megatron,
    is_named,
    open_source,
)
from ckpt_tool.operations.tied_head import are_equal_together
from ckpt_tool.plans.fingerprint import add_times
from ckpt_tool.readers import read_together
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.dtypes import BFLOAT16


@dataclass(frozen=True)
class Side:
    """A checkpoint, the model in it by its names on the Hub, and the ``ranks`` of its files."""

    checkpoint: Checkpoint
    model: HubModel
    ranks: Mapping[str, int | None]

    @property
    def tensors(self) -> Tensors:
        """What is compared, by name."""
        return self.model.tensors

    @property
    def config(self) -> ModelConfig | None:
        """What explains the names, where anything does."""
        return self.model.config

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was done to the tensors before they are compared."""
        return self.model.warnings

    def rank_of(self, path: str) -> int | None:
        """The rank that wrote a file, if one did."""
        return self.ranks.get(path)


def open_sides(left: Path, right: Path, options: ModelOptions, team: Team) -> tuple[Side, Side]:
    """Both checkpoints, opened, proven complete, and by their names on the Hub.

    A step is the left side's. What is said of names is for the first side that is no Hugging Face
    model, of adapters for every side that has some, and a config for every side without one, as
    the other side's. Raises what opening and naming do; UsageError for what no side takes.
    """
    _require_fused(options)
    asked = options
    options = team.world.each(lambda: settle_repositories(asked))
    named = replace(options, lora=LoraOptions(), fill_from=None)
    plain = replace(named, names=NameOptions(), weights="model", step=None)
    first = open_proven(left, named, team)
    sources = [first, open_proven(right, named if is_named(first.checkpoint) else plain, team)]
    told = share_out(sources, options)
    configs = [find_config(source, each) for source, each in zip(sources, told, strict=True)]
    mine, theirs = (
        name_side(source, config or other, each, team)
        for source, config, other, each in zip(
            sources, configs, reversed(configs), told, strict=True
        )
    )
    return meet(mine, theirs), meet(theirs, mine)


def find_tied_heads(left: Side, right: Side, mine: Tensors, theirs: Tensors, team: Team) -> Tied:
    """Heads on one side only that repeat the embedding to which a config ties them, and why."""
    found: Tied = {}
    if not any(side.config is not None and side.config.tied for side in (left, right)):
        return found
    for where, here, there in (("checkpoint", mine, theirs), ("reference", theirs, mine)):
        for name in here:
            if name in there or not is_head(name):
                continue
            head = here[name]
            alike = (n for n, t in here.items() if (t.shape, t.dtype) == (head.shape, head.dtype))
            embedding = find_only_embedding(alike)
            if embedding is None or embedding not in there:  # nothing would say that it is right
                continue
            if are_equal_together(head, here[embedding], team):
                found[name] = f"only in the {where}, equal to {embedding}, to which config ties it"
    return found


Tied = dict[str, str]


def open_proven(asked: Path, options: ModelOptions, team: Team) -> Source:
    """A checkpoint, found, opened and proven complete."""
    named = team.world.each(lambda: reach(asked))
    (chosen,) = team.world.first(lambda: spell(choose_steps([named], options.step)))
    path = team.world.each(lambda: recall(chosen))
    with read_together([path], team):
        source = team.world.each(lambda: _open_whole(path, named, options, team.progress))
    _require_one_version(source.checkpoint, team)
    prove_replicas(source.checkpoint, False, team)
    return source


def _require_one_version(checkpoint: Checkpoint, team: Team) -> None:
    """UsageError where processes see files of other sizes or times: metadata may be another's."""
    seen = team.world.everyone(lambda: add_times("", checkpoint.files))
    if len(set(seen)) > 1:
        raise UsageError(
            f"{checkpoint.path}: not the same for all processes of this run",
            hint="All of them must see the same files; run again when nobody writes there.",
        )


def _open_whole(path: Path, named: Path, options: ModelOptions, progress: Progress) -> Source:
    source = open_source([path], options, progress, [named])
    ranks = source.checkpoint.world_size
    if source.checkpoint.format == "fsdp-rank" and ranks != 1:
        raise UsageError(
            f"{path}: the file of one rank of {ranks}, not a whole checkpoint",
            hint="Name the folder in which all ranks are.",
        )
    return source


def _require_fused(options: ModelOptions) -> None:
    mode = options.lora.mode
    if mode not in (None, "fuse"):
        raise UsageError(f"`lora.mode={mode!r}`: models are compared with adapters fused")


def name_side(
    source: Source, config: ModelConfig | None, options: ModelOptions, team: Team
) -> Side:
    """A side by its names on the Hub; as they are where no config explains them."""
    checkpoint = source.checkpoint
    source = Source(checkpoint, open_base(checkpoint, options), open_filler(options))
    try:
        model = make_hub_model(source, config, options, team)
    except MappingError as error:
        if not is_named(checkpoint):
            raise
        said = f"names are compared as they are: {error}: {'; '.join(error.names)}"
        model = HubModel(dict(checkpoint), config, warnings=(*checkpoint.warnings, said))
    notes = [f"left out {name} ({why})" for name, why in describe_left_out(checkpoint).items()]
    notes += _describe_fused(model)
    notes += model.warnings
    if config is None and holds_megatron(checkpoint):
        notes.append(
            "no config.json beside either checkpoint, so names and layouts are compared as they are"
        )
    said_of_side = tuple(f"{checkpoint.path}: {note}" for note in notes)
    ranks = {file.path: file.rank for file in checkpoint.files}
    return Side(checkpoint, replace(model, warnings=said_of_side), ranks)


def _describe_fused(model: HubModel) -> list[str]:
    if (note := model.lora) is None:
        return []
    numbers = f"rank {note.rank}, alpha {note.alpha:g}, {note.source}"
    return [f"LoRA adapters are compared fused ({numbers})"]


def meet(side: Side, other: Side) -> Side:
    """The side as it can be compared with the other: quantised weights by their values.

    Beside Megatron, which has none, scales of a server's cache are left out. What Hugging Face
    repeats of a Megatron side or a value head is there where the other has it.
    """
    model = _leave_out_scales(side) if holds_megatron(other.checkpoint) else side.model
    kinds = list_kinds(model.tensors) - list_kinds(other.tensors)
    if kinds:
        model = _dequantise(model, other, side.checkpoint.path, kinds)
    if model.config is not None:
        model = replace(model, tensors=_split_apart(model.tensors, model.config, other))
    repeated = {name: t for name, t in model.repeats.items() if name in other.tensors}
    ties = {name: tie.copy for name, tie in (model.ties or {}).items()}
    repeated |= {name: copy for name, copy in ties.items() if name in other.tensors}
    named = spell_alike(model.tensors | repeated, other.tensors, model.config)
    tensors = match_heads(named, other.tensors)
    return replace(side, model=replace(model, tensors=tensors))


def _leave_out_scales(side: Side) -> HubModel:
    kept, dropped = set_aside_cache_scales(side.tensors)
    notes = (f"{side.checkpoint.path}: left out {name} ({why})" for name, why in dropped.items())
    return replace(side.model, tensors=kept, warnings=(*side.warnings, *notes))


def _split_apart(tensors: Tensors, config: ModelConfig, other: Side) -> Tensors:
    """The tensors with each expert by itself in those layers where the other side has them so."""
    apart = {name.rsplit(".", 3)[0] for name in other.tensors}  # experts, a number, what, "weight"
    fused = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] in apart and is_fused(name, config)
    }
    if not fused:
        return tensors
    kept = {name: tensor for name, tensor in tensors.items() if name not in fused}
    return kept | split_fused(fused, config)


def _dequantise(model: HubModel, other: Side, path: Path, kinds: set[Kind]) -> HubModel:
    if model.config is None:
        return model
    dtype = find_main_dtype(other.tensors.values()) or BFLOAT16
    said = f"{path}: quantised weights are compared as {dtype}, with their scales applied"
    return replace(
        model,
        tensors=dequantise_weights(model.tensors, model.config, dtype, kinds),
        warnings=(*model.warnings, said),
    )
