"""Everything that a merge will write, before anything is: opened, proven, named, in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.garbage import pause_collection
from ckpt_tool.common.parallel import Team, form_team_alone
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.remote.shadow import reach, recall, spell
from ckpt_tool.mapping.casting import (
    cast_all,
    choose_dtype,
    find_main_dtype,
    refuse_casts,
    require_dtype,
)
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.truth import tell_truth
from ckpt_tool.mapping.quantised import find_quantisation
from ckpt_tool.mapping.side_files import SideFiles, gather_side_files
from ckpt_tool.operations.beside import lacks_model
from ckpt_tool.operations.dtypes import settle_dtypes
from ckpt_tool.operations.hub_model import make_hub_model
from ckpt_tool.operations.kinds import require_kind
from ckpt_tool.operations.options import MergeOptions, parse_size
from ckpt_tool.operations.replicas import prove_replicas
from ckpt_tool.operations.repositories import settle_repositories
from ckpt_tool.operations.request import Heads
from ckpt_tool.operations.runs import choose_steps
from ckpt_tool.operations.source import (
    Source,
    find_config,
    is_adapter_of_peft,
    list_tokenizer_folders,
    open_source,
)
from ckpt_tool.plans.checks.dtypes import Held
from ckpt_tool.plans.huggingface import HubPlan
from ckpt_tool.readers import read_together
from ckpt_tool.tensors.dtypes import BY_NAME, FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.reshaped import list_paths
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.safetensors import ADAPTER_NAME, plan_file, plan_files

#: A model of 700 billion parameters has 270, of 5 GB each.
_MANY_FILES = 500

#: The folder of a checkpoint, or those of one whose ranks lie on several nodes.
Folders = str | Path | Sequence[str | Path]


@pause_collection()
def make_plan(
    paths: Folders, kind: str, options: MergeOptions | None = None, team: Team | None = None
) -> HubPlan:
    """What a merge would write; writes nothing. Raises what merging does before it writes."""
    asked = options or MergeOptions()
    team = team or form_team_alone(asked.jobs)
    named = team.world.each(lambda: _list_paths(paths))
    options = team.world.each(lambda: settle_repositories(asked))
    chosen = team.world.first(lambda: spell(choose_steps(named, asked.step)))
    places = team.world.each(lambda: [*map(recall, chosen)])
    with read_together(places, team):
        source = team.world.each(lambda: _open(places, named, options, team.progress))
    team.world.each(lambda: require_kind(source.checkpoint, kind, places))
    team.world.each(lambda: _refuse_adapter_of_peft(source, options))
    prove_replicas(source.checkpoint, options.check_replicas, team)
    team.progress.start("planning", None)
    config = team.world.each(lambda: _require_config(source, options))
    heads = Heads(options.tie_word_embeddings, options.value_model)
    model = make_hub_model(source, config, options, team, heads)
    if model.is_adapter:
        _refuse_without_model(source, options)
    true = team.world.each(lambda: tell_truth(model))
    held = team.world.first(lambda: settle_dtypes(true, options, team.progress))
    team.progress.start("planning files", None)
    return team.world.each(lambda: _plan_files(source, true, held, options))


def _list_paths(paths: Folders) -> list[Path]:
    if isinstance(paths, (str, Path)):
        return [reach(paths)]
    return [reach(path) for path in paths]


def _open(
    paths: Sequence[Path], named: Sequence[Path], options: MergeOptions, progress: Progress
) -> Source:
    """The checkpoint, if it is sound, and the options are choices that exist."""
    require_dtype(options.dtype)
    parse_size(options.max_shard_size)
    if options.keep_names and options.value_model is not None:
        said = f"`value_model={options.value_model}`: cannot go with `keep_names=True`"
        raise UsageError(said)
    return open_source(paths, options, progress, named)


def _require_config(source: Source, options: MergeOptions) -> ModelConfig | None:
    """The config to write; None where the weights are wanted without. UsageError without any."""
    config = find_config(source, options)
    if config is None and not options.keep_names and not lacks_model(source.checkpoint):
        raise UsageError(
            f"{source.checkpoint.path}: no config.json in the checkpoint",
            hint="Name a folder that has it with `config=DIR`, or write the weights alone with"
            " `keep_names=True`.",
        )
    return config


def _refuse_adapter_of_peft(source: Source, options: MergeOptions) -> None:
    """UsageError where adapters alone would become what they are: a folder that peft opens."""
    lora = options.lora
    if (lora.base is None or lora.mode == "split") and is_adapter_of_peft(source.checkpoint):
        raise UsageError(
            f"{source.checkpoint.path}: adapters alone, in a form that peft opens",
            hint="To fuse them, name the model that they were trained on with `lora.base=MODEL`.",
        )


def _refuse_without_model(source: Source, options: MergeOptions) -> None:
    """UsageError for what is asked of a model, where adapters alone are written."""
    asked = (options.tie_word_embeddings, options.value_model)
    if options.write.check_load or any(choice is not None for choice in asked):
        raise UsageError(
            f"{source.checkpoint.path}: adapters alone: there is no model to check, and no head"
            " in it",
            hint="Leave out `write.check_load` and what is about heads, or name `lora.base=MODEL`.",
        )


def _plan_files(source: Source, model: HubModel, held: Held, options: MergeOptions) -> HubPlan:
    """The plan for a model by its names on the Hub: dtypes and files."""
    target = choose_dtype(options.dtype, model.config)
    refuse_casts(model.tensors, options.dtype)
    tensors = cast_all(model.tensors, target, model.config, held.dtypes)
    is_cast = target is not None and any(tensor.dtype == target for tensor in tensors.values())
    model = model.with_dtype(target if is_cast else find_main_dtype(tensors.values()))
    config = model.config
    files = plan_files(tensors, parse_size(options.max_shard_size)) if tensors else []
    adapter = model.adapter
    if adapter is not None:
        adapter = replace(
            adapter, tensors=cast_all(adapter.tensors, BY_NAME.get(options.dtype), None)
        )
        files.append(plan_file(adapter.path(ADAPTER_NAME), adapter.tensors, "adapter"))
    beside = _find_beside(source, config, options, quantised=bool(find_quantisation(tensors)))
    return HubPlan(
        checkpoint=source.checkpoint if model.is_adapter else source.with_others(),
        config=config,
        model=tensors,
        files=files,
        beside=beside,
        has_card=options.card,
        dropped=model.dropped | beside.dropped,
        warnings=[
            *model.warnings,
            *held.warnings,
            *beside.warnings,
            *_warn_of_trl(model, files),
            *_warn_of_many(files, options),
        ],
        lora=model.lora,
        filled=_list_filled(source, model),
        tied=model.tied,
        adapter=adapter,
        views=model.views,
        heard=held.heard,
        float32=_say_float32(tensors, options, config),
    )


def _say_float32(
    tensors: Mapping[str, LazyTensor], options: MergeOptions, config: ModelConfig | None
) -> str:
    """Why most weights are float32, where nobody asked for it; else empty."""
    if options.dtype != "auto" or find_main_dtype(tensors.values()) != FLOAT32:
        return ""
    if config is not None and config.dtype is not None:
        return "as config.json says"
    return "as in the checkpoint" + ("" if config is None else ": config.json names no dtype")


def _warn_of_many(files: Sequence[PlannedFile], options: MergeOptions) -> Iterator[str]:
    """A warning where the weights are in more files than anybody wants."""
    count = sum(file.role == "weights" for file in files)
    if count > _MANY_FILES:
        yield (
            f"the weights are in {count:,} files, each with what"
            f" `max_shard_size={options.max_shard_size!r}` has room for; 5GB is usual"
        )


def _list_filled(source: Source, model: HubModel) -> list[str]:
    """The tensors that are all from the model that was named for what is missing."""
    if source.filler is None:
        return []
    files = {file.path for file in source.filler.files}
    return sorted(
        name
        for name, tensor in model.tensors.items()
        if tensor.chunks and list_paths(tensor) <= files
    )


def _find_beside(
    source: Source, config: ModelConfig | None, options: MergeOptions, *, quantised: bool
) -> SideFiles:
    """What goes along with the weights; the tokenizer is the run's own, where it saved one."""
    if config is None:
        return SideFiles()
    tokenizers = list_tokenizer_folders(source.checkpoint, config, options.tokenizer)
    named = source.list_named(options.config, options.tokenizer)
    return gather_side_files(config, tokenizers, quantised=quantised, named=named)


def _warn_of_trl(model: HubModel, files: Sequence[PlannedFile]) -> Iterator[str]:
    """A warning where trl would not find the head that is in the model."""
    weights = [file for file in files if file.role == "weights"]
    if len(weights) > 1 and model.head.keys() & model.tensors.keys():
        size = -(-sum(file.size for file in files) // 10**9)
        yield (
            f"the weights are in {len(weights)} files, and trl finds a value head in a local folder"
            f" only if they are in one: for trl, merge with `max_shard_size='{size}GB'`"
        )
