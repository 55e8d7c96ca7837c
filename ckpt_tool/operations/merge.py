"""``ckpt merge``: a sharded checkpoint becomes a Hugging Face model folder.

Planning reads metadata only (and replicas and tied weights, to prove them equal): it ends with all
files, names, shapes, dtypes and byte ranges known, or with one error that lists all that is wrong.
Writing then moves each byte once. Under torchrun every process plans, and writes its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import ALONE, Team, is_first, jobs_of, joined
from ckpt_tool.common.progress import NoProgress, Progress
from ckpt_tool.mapping.casting import cast_all, choose_dtype, find_main_dtype, require_dtype
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.operations.hub_model import make_hub_model
from ckpt_tool.operations.kinds import require_kind
from ckpt_tool.operations.options import MergeOptions, parse_size
from ckpt_tool.operations.replicas import prove_replicas
from ckpt_tool.operations.request import Heads
from ckpt_tool.operations.source import Source, find_config, lacks_model, open_source
from ckpt_tool.operations.upload import (
    Target,
    Upload,
    UploadResult,
    check_upload,
    upload_folder,
    weight_names,
)
from ckpt_tool.plans.huggingface import HubPlan
from ckpt_tool.plans.options import WriteResult
from ckpt_tool.plans.write import write
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.writers.safetensors import ADAPTER_NAME, plan_file, plan_files

Folders = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Job:
    """What to merge, and where to: ``kind`` is the word of the command that ``paths`` are for."""

    paths: Folders
    out: str | Path
    kind: str


def merge_fsdp(
    folders: Folders,
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the FSDP rank files in ``folders`` (one per node) into the model folder ``out``.

    Under torchrun every process calls this and writes its share; the result is the same.
    ``progress`` is told of bytes that are compared and written. Returns what was written, sizes in
    bytes. Raises CheckpointError, MappingError, OutputError, UsageError or FormatError; ``out`` then
    does not exist, or is what it was.

    >>> import tempfile, torch
    >>> from ckpt_tool import MergeOptions, merge_fsdp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = {"norm.weight": torch.arange(6.0)}
    ...     torch.save(state, f"{folder}/model_world_size_1_rank_0.pt")
    ...     result = merge_fsdp(folder, f"{folder}/out", MergeOptions(keep_names=True))
    ...     print(result.num_tensors, [file.name for file in result.files])
    1 ['model.safetensors']
    """
    return merge(Job(folders, out, "fsdp"), options, progress)


def merge_megatron(
    folder: str | Path,
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the megatron-core checkpoint in ``folder``, as :func:`merge_fsdp` does rank files.

    ``torch_dist`` and rank files, of any tensor, pipeline and expert parallel sizes.

    >>> import tempfile, torch
    >>> from ckpt_tool import MergeOptions, merge_megatron
    >>> state = {"embedding.word_embeddings.weight": torch.ones(4, 2),
    ...          "decoder.final_layernorm.weight": torch.ones(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rank = Path(folder, "mp_rank_00")
    ...     rank.mkdir()
    ...     torch.save({"model": state}, rank / "model_optim_rng.pt")
    ...     result = merge_megatron(folder, f"{folder}/out", MergeOptions(keep_names=True))
    ...     print(result.format, result.num_tensors)
    megatron-ranks 2
    """
    return merge(Job(folder, out, "megatron"), options, progress)


def merge_dcp(
    folder: str | Path,
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the torch.distributed.checkpoint ``folder``, as :func:`merge_fsdp` does rank files.

    Dictionaries around the model are found, and state of training beside it is left out.

    >>> import tempfile, torch, torch.distributed.checkpoint as dcp
    >>> from ckpt_tool import MergeOptions, merge_dcp
    >>> state = {"app": {"model": {"embed_tokens.weight": torch.ones(4, 2)}, "epoch": 3}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save(state, checkpoint_id=folder, no_dist=True)
    ...     result = merge_dcp(folder, f"{folder}/out", MergeOptions(keep_names=True))
    ...     print(result.format, result.num_tensors)
    dcp 1
    """
    return merge(Job(folder, out, "dcp"), options, progress)


def merge(
    job: Job,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
    upload: Upload | None = None,
) -> WriteResult:
    """Do ``job``. Raises what :func:`merge_fsdp` does.

    With ``upload`` the Hub is asked before anything is planned, and again when names are known,
    whether it will take the model; :func:`send` sends it when it is there.
    """
    options = options or MergeOptions()
    with joined() as world:
        team = Team(world, jobs_of(options.jobs), progress or NoProgress())
        return merge_as_team(job, options, team, upload)


def merge_as_team(
    job: Job, options: MergeOptions, team: Team, upload: Upload | None = None
) -> WriteResult:
    """The same by processes that have joined already; ``options.jobs`` is not looked at."""
    target = team.world.first(lambda: check_upload(upload) if upload is not None else None)
    plan = make_plan(job.paths, job.kind, options, team)
    team.world.first(lambda: _require_replaced(target, plan))
    return write(plan, Path(job.out), options.write, team)


@dataclass(frozen=True)
class Preview:
    """What a merge would do: the plan, and where an upload would go."""

    plan: HubPlan
    target: Target | None


def preview_merge(
    job: Job,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
    upload: Upload | None = None,
) -> Preview:
    """What :func:`merge` would write, with all that it would refuse refused; writes nothing."""
    options = options or MergeOptions()
    team = Team(ALONE, jobs_of(options.jobs), progress or NoProgress())
    target = check_upload(upload) if upload is not None and is_first() else None
    plan = make_plan(job.paths, job.kind, options, team)
    _require_replaced(target, plan)
    plan.check(Path(job.out), options.write)
    return Preview(plan, target)


def send(result: WriteResult, upload: Upload, *, show: bool = False) -> UploadResult:
    """Upload what was merged, when all of it is there; raises what uploading does."""
    return upload_folder(result.output, upload, show=show)


def make_plan(
    paths: Folders, kind: str, options: MergeOptions | None = None, team: Team | None = None
) -> HubPlan:
    """Everything that :func:`merge` would write; writes nothing. Raises what it raises."""
    options = options or MergeOptions()
    team = team or Team(ALONE, jobs_of(options.jobs), NoProgress())
    places = _list_paths(paths)
    source = team.world.each(lambda: _open(places, kind, options))
    prove_replicas(source.checkpoint, options.check_replicas, team)
    config = team.world.each(lambda: _require_config(source, options))
    heads = Heads(options.tie_word_embeddings, options.value_model)
    model = make_hub_model(source, config, options, team, heads)
    if model.is_adapter:
        _refuse_without_model(source, options)
    return team.world.each(lambda: _plan_files(source, model, options))


def _list_paths(paths: Folders) -> list[Path]:
    if isinstance(paths, (str, Path)):
        return [Path(paths)]
    return [Path(path) for path in paths]


def _open(paths: Sequence[Path], kind: str, options: MergeOptions) -> Source:
    """The checkpoint, if it is sound, of the kind, and the options are choices that exist."""
    require_dtype(options.dtype)
    parse_size(options.max_shard_size)
    if options.keep_names and options.value_model is not None:
        said = f"`value_model={options.value_model}`: cannot go with `keep_names=True`"
        raise UsageError(said)
    source = open_source(paths, options)
    require_kind(source.checkpoint, kind, paths)
    return source


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


def _refuse_without_model(source: Source, options: MergeOptions) -> None:
    """UsageError for what is asked of a model, where adapters alone are written."""
    asked = (options.tie_word_embeddings, options.value_model)
    if options.write.check_load or any(choice is not None for choice in asked):
        raise UsageError(
            f"{source.checkpoint.path}: adapters alone: there is no model to check, and no head"
            " in it",
            hint="Leave out `write.check_load` and what is about heads, or name `lora.base=MODEL`.",
        )


def _require_replaced(target: Target | None, plan: HubPlan) -> None:
    if target is not None:
        target.require_replaced(weight_names(plan))


def _plan_files(source: Source, model: HubModel, options: MergeOptions) -> HubPlan:
    """The plan for a model by its names on the Hub: dtypes and files."""
    config = model.config
    tensors = cast_all(model.tensors, choose_dtype(options.dtype, config), config)
    if config is not None:
        config = config.with_dtype(find_main_dtype(tensors.values()))
    files = plan_files(tensors, parse_size(options.max_shard_size)) if tensors else []
    adapter = model.adapter
    if adapter is not None:
        adapter = replace(
            adapter, tensors=cast_all(adapter.tensors, BY_NAME.get(options.dtype), None)
        )
        files.append(plan_file(adapter.path(ADAPTER_NAME), adapter.tensors, "adapter"))
    plan = HubPlan(
        checkpoint=source.checkpoint if model.is_adapter else source.with_base(),
        config=config,
        model=tensors,
        files=files,
        dropped=model.dropped,
        warnings=list(model.warnings),
        lora=model.lora,
        adapter=adapter,
        views=model.views,
    )
    return _warn_trl(plan, model)


def _warn_trl(plan: HubPlan, model: HubModel) -> HubPlan:
    """The plan with a warning where trl would not find the head that is in it."""
    weights = plan.weight_files
    if len(weights) == 1 or not model.head.keys() & plan.model.keys():
        return plan
    size = -(-plan.total_bytes // 10**9)
    said = (
        f"the weights are in {len(weights)} files, and trl finds a value head in a local folder"
        f" only if they are in one: for trl, merge with `max_shard_size='{size}GB'`"
    )
    return replace(plan, warnings=[*plan.warnings, said])
