"""``ckpt merge``: a sharded checkpoint becomes a Hugging Face model folder.

Planning reads metadata only (and replicas and tied weights, to prove them equal): it ends with
every file, name, shape, dtype and byte range known, or with one error that lists all that is
wrong. Writing then moves each byte once (:mod:`ckpt_tool.model_folder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.casting import cast_all, main_dtype, require_dtype, target_dtype
from ckpt_tool.errors import CheckpointError, UsageError
from ckpt_tool.jobs import jobs_of
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.hub import refuse_adapters, to_hub
from ckpt_tool.model_folder import write_model
from ckpt_tool.output import WriteOptions, WriteResult
from ckpt_tool.plan import ModelPlan
from ckpt_tool.progress import NoProgress, Progress
from ckpt_tool.proofs import prove_replicas, tied_head
from ckpt_tool.readers import open_fsdp_folders
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.writers.huggingface import parse_size, plan_files


@dataclass(frozen=True)
class MergeOptions:
    """What a merge can be told; the defaults are the command's.

    ``config`` is a folder with config and tokenizer (None: the checkpoint's own).
    ``keep_names``: weights and index only, names as they are in the checkpoint.
    ``jobs``: threads, 0 for one per core, at least 2 and at most 4.
    """

    config: Path | None = None
    keep_names: bool = False
    dtype: str = "auto"
    max_shard_size: str = "5GB"
    tie_word_embeddings: bool | None = None
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
    progress = progress or NoProgress()
    plan = plan_fsdp(folders, options, progress)
    return write_model(plan, Path(out), options.write, jobs_of(options.jobs), progress)


def plan_fsdp(
    folders: Sequence[str | Path],
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> ModelPlan:
    """What :func:`merge_fsdp` would write; writes nothing. Raises what it raises."""
    return plan_model(
        open_fsdp_folders(folders), options or MergeOptions(), progress or NoProgress()
    )


def plan_model(checkpoint: Checkpoint, options: MergeOptions, progress: Progress) -> ModelPlan:
    """The plan for any checkpoint whose names are those of a transformers model in memory."""
    require_dtype(options.dtype)
    limit = parse_size(options.max_shard_size)
    checkpoint.require_sound()
    if not checkpoint.entries:
        raise CheckpointError(f"{checkpoint.path}: there is no tensor in this checkpoint")
    config = _config(checkpoint, options)
    if config is not None:
        refuse_adapters(checkpoint.entries)
    prove_replicas(checkpoint, options.check_replicas, jobs_of(options.jobs), progress)
    warnings: list[str] = []
    tensors = dict(checkpoint)
    dropped: dict[str, str] = {}
    if config is not None:
        head = tied_head(checkpoint, config, options.tie_word_embeddings, jobs_of(options.jobs))
        if head.dropped:
            dropped[head.name] = f"equal to {head.embedding}, to which the config ties it"
            tensors.pop(head.name)
        form = to_hub(tensors, config.with_tied(head.tied))
        tensors, config = form.tensors, form.config
        warnings += form.warnings
    tensors = cast_all(tensors, target_dtype(options.dtype, config), config)
    if config is not None:
        config = config.with_dtype(main_dtype(tensors.values()))
    return ModelPlan(
        checkpoint=checkpoint,
        config=config,
        tensors=tensors,
        files=plan_files(tensors, limit),
        dropped=dropped,
        warnings=warnings,
    )


def _config(checkpoint: Checkpoint, options: MergeOptions) -> ModelConfig | None:
    if options.keep_names:
        return None
    folder = options.config or checkpoint.side_files
    if folder is None:
        raise UsageError(
            f"{checkpoint.path}: no config.json in the checkpoint",
            hint="Name a folder that has it with --config DIR, or write the weights alone with"
            " --config none.",
        )
    return load_config(folder)
