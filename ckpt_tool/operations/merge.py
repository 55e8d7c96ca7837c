"""``ckpt merge``: a sharded checkpoint becomes a Hugging Face model folder.

Planning reads metadata only (and replicas and tied weights, to prove them equal): it ends with all
files, names, shapes, dtypes and byte ranges known, or with one error that lists all that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, UsageError
from ckpt_tool.common.jobs import jobs_of
from ckpt_tool.common.parallel import ALONE, Team, joined
from ckpt_tool.common.progress import NoProgress, Progress
from ckpt_tool.mapping.casting import cast_all, main_dtype, require_dtype, target_dtype
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.hub.names import refuse_adapters, to_hub
from ckpt_tool.mapping.hub.transformers_tables import HubForm
from ckpt_tool.mapping.hub.value_head import as_value_model, value_model
from ckpt_tool.mapping.lora.names import Adapters
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.lora import (
    adapters_of,
    base_config,
    kept_adapters,
    resolve,
    resolve_alone,
)
from ckpt_tool.operations.proofs import prove_replicas, tied_head
from ckpt_tool.operations.resolved import Resolved
from ckpt_tool.plans.huggingface import write_model
from ckpt_tool.plans.output import WriteOptions, WriteResult
from ckpt_tool.plans.plan import ModelPlan
from ckpt_tool.readers import open_fsdp_folders
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.safetensors import ADAPTER_NAME, parse_size, plan_file, plan_files


@dataclass(frozen=True)
class MergeOptions:
    """What a merge can be told; the defaults are the command's.

    ``config`` is a folder with config and tokenizer (None: the checkpoint's own).
    ``keep_names``: weights and index only, names as they are in the checkpoint.
    ``value_model``: whether one is wanted (None: what the checkpoint is).
    ``jobs``: threads, 0 for one per core, at least 2 and at most 4.
    """

    config: str | Path | None = None
    keep_names: bool = False
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    tie_word_embeddings: bool | None = None
    lora: LoraOptions = field(default_factory=LoraOptions)
    value_model: bool | None = None
    check_replicas: bool = False
    jobs: int = 0
    write: WriteOptions = field(default_factory=WriteOptions)


def merge_fsdp(
    folders: Sequence[str | Path],
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the FSDP rank files in ``folders`` into the Hugging Face folder ``out``.

    Raises CheckpointError, MappingError, OutputError, UsageError or FormatError; ``out`` then
    does not exist, or is what it was.
    """
    options = options or MergeOptions()
    return write_planned(
        lambda team: plan_fsdp(folders, options, team), Path(out), options, progress
    )


def plan_fsdp(
    folders: Sequence[str | Path], options: MergeOptions | None = None, team: Team | None = None
) -> ModelPlan:
    """What :func:`merge_fsdp` would write; writes nothing. Raises what it raises."""
    options = options or MergeOptions()
    team = team or team_of(options)
    checkpoint = team.world.each(lambda: opened(open_fsdp_folders(folders), options))
    prove_replicas(checkpoint, options.check_replicas, team)
    return team.world.each(lambda: plan_model(checkpoint, dict(checkpoint), options, {}))


def write_planned(
    plan: Callable[[Team], ModelPlan], out: Path, options: MergeOptions, progress: Progress | None
) -> WriteResult:
    """Plan and write with all processes of this run."""
    with joined() as world:
        team = Team(world, jobs_of(options.jobs), progress or NoProgress())
        return write_model(plan(team), out, options.write, team)


def team_of(options: MergeOptions, progress: Progress | None = None) -> Team:
    """A team of this process alone."""
    return Team(ALONE, jobs_of(options.jobs), progress or NoProgress())


def opened(checkpoint: Checkpoint, options: MergeOptions) -> Checkpoint:
    """The checkpoint, if it is sound and the options are choices that exist."""
    require_dtype(options.dtype)
    parse_size(options.max_shard_size)
    if options.keep_names and options.value_model is not None:
        raise UsageError("--value-model, --no-value-model: they cannot go with --config none")
    checkpoint.require_sound()
    if not checkpoint.entries:
        raise CheckpointError(f"{checkpoint.path}: there is no tensor in this checkpoint")
    return checkpoint


def plan_model(
    checkpoint: Checkpoint,
    tensors: Mapping[str, LazyTensor],
    options: MergeOptions,
    dropped: dict[str, str],
) -> ModelPlan:
    """The plan for tensors whose names are those of a transformers model in memory.

    ``dropped`` are names that were left out before, and why.
    """
    if options.keep_names and not options.lora.asked:
        form = HubForm(dict(tensors), None, kept_adapters(tensors))
        return finish_plan(checkpoint, form, options, dropped)
    adapters = adapters_of(tensors)
    if adapters is not None and not adapters.base:
        return _plan_alone(checkpoint, adapters, options, dropped)
    config = config_of(checkpoint, options)
    found = resolve(checkpoint, tensors, adapters, options.lora, config)
    return _plan_resolved(checkpoint, found, config, options, dropped)


def _plan_alone(
    checkpoint: Checkpoint,
    adapters: Adapters,
    options: MergeOptions,
    dropped: dict[str, str],
) -> ModelPlan:
    """The plan for adapters that were saved without their model."""
    config = base_config(options.lora)
    if options.config is not None or (config is None and checkpoint.side_files is not None):
        config = config_of(checkpoint, options)
    found = resolve_alone(checkpoint, adapters, options.lora, config)
    if found.base is not None:
        return _plan_resolved(found.with_base(checkpoint), found, config, options, dropped)
    if options.write.check_load or {options.tie_word_embeddings, options.value_model} != {None}:
        raise UsageError(
            f"{checkpoint.path}: adapters alone: there is no model to check, and no head in it",
            hint="Leave out --check-load and what is about heads, or name --base MODEL.",
        )
    return finish_plan(checkpoint, HubForm({}, None, []), options, dropped, found)


def _plan_resolved(
    checkpoint: Checkpoint,
    found: Resolved,
    config: ModelConfig | None,
    options: MergeOptions,
    dropped: dict[str, str],
) -> ModelPlan:
    """The plan for a model without adapters in it."""
    dropped = dropped | found.dropped
    if config is None:
        return finish_plan(checkpoint, HubForm(found.tensors, None, []), options, dropped, found)
    refuse_adapters(found.tensors)
    model = value_model(found.tensors, config, options.value_model)
    tensors, tied, also = without_tied_head(model.base, model.config, options)
    form = to_hub(tensors, model.config.with_tied(tied))
    form, head = as_value_model(form, model.head, options.value_model)
    plan = finish_plan(checkpoint, form, options, dropped | also | head, found)
    return _warned(plan, model.head)


def _warned(plan: ModelPlan, head: Mapping[str, LazyTensor]) -> ModelPlan:
    """The plan with a warning where trl would not find the head that is in it."""
    weights = [file for file in plan.files if "/" not in file.name]
    if len(weights) == 1 or not head.keys() & plan.model.keys():
        return plan
    size = -(-plan.total_bytes // 10**9)
    said = (
        f"the weights are in {len(weights)} files, and trl finds a value head in a local folder"
        f" only if they are in one: for trl, merge with --max-shard-size {size}GB"
    )
    return replace(plan, warnings=[*plan.warnings, said])


def without_tied_head(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, options: MergeOptions
) -> tuple[dict[str, LazyTensor], bool | None, dict[str, str]]:
    """The tensors to write, whether the config ties the head, and what is dropped for that."""
    head = tied_head(tensors, config, options.tie_word_embeddings, jobs_of(options.jobs))
    kept = dict(tensors)
    if not head.dropped:
        return kept, head.tied, {}
    kept.pop(head.name)
    reason = f"equal to {head.embedding}, to which the config ties it"
    return kept, head.tied, {head.name: reason}


def finish_plan(
    checkpoint: Checkpoint,
    form: HubForm,
    options: MergeOptions,
    dropped: dict[str, str],
    lora: Resolved | None = None,
) -> ModelPlan:
    """The plan for tensors by their names on the Hub: dtypes and files."""
    config = form.config
    tensors = cast_all(form.tensors, target_dtype(options.dtype, config), config)
    if config is not None:
        config = config.with_dtype(main_dtype(tensors.values()))
    files = plan_files(tensors, parse_size(options.max_shard_size)) if tensors else []
    adapter = lora.files if lora is not None else None
    if adapter is not None:
        adapter = replace(
            adapter, tensors=cast_all(adapter.tensors, BY_NAME.get(options.dtype), None)
        )
        files.append(plan_file(adapter.path(ADAPTER_NAME), adapter.tensors))
    return ModelPlan(
        checkpoint=checkpoint,
        config=config,
        model=tensors,
        files=files,
        dropped=dropped,
        warnings=form.warnings,
        lora=lora.note if lora is not None else None,
        adapter=adapter,
        views=form.views,
    )


def config_of(checkpoint: Checkpoint, options: MergeOptions) -> ModelConfig | None:
    """The config to write; None where the weights are wanted without. UsageError without any."""
    if options.keep_names:
        return None
    folder = options.config or checkpoint.side_files
    if folder is None:
        raise UsageError(
            f"{checkpoint.path}: no config.json in the checkpoint",
            hint="Name a folder that has it with --config DIR, or write the weights alone with"
            " --config none.",
        )
    return load_config(Path(folder))
