"""``ckpt merge``: a sharded checkpoint becomes a Hugging Face model folder.

Planning reads metadata only (and replicas and tied weights, to prove them equal): it ends with all
files, names, shapes, dtypes and byte ranges known, or with one error that lists all that is wrong.
Writing then moves each byte once. Under torchrun every process plans, and writes its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.launchers import is_first
from ckpt_tool.common.parallel import Team, form_team_alone, join_team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.remote.address import Address
from ckpt_tool.operations.elsewhere import settle_out
from ckpt_tool.operations.merge_plan import Folders, make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.upload import (
    Target,
    Upload,
    UploadResult,
    check_upload,
    list_weight_names,
    upload_folder,
)
from ckpt_tool.plans.checks.judge import Verdict
from ckpt_tool.plans.huggingface import HubPlan
from ckpt_tool.plans.options import WriteResult
from ckpt_tool.plans.write import judge_plan, write
from ckpt_tool.writers.places import Place, probe_place


@dataclass(frozen=True)
class Job:
    """What to merge, and where to.

    ``kind``: the word of the command that ``paths`` are for; empty: what they are is recognised.
    """

    paths: Folders
    out: str | Path | Address
    kind: str = ""


def merge_checkpoint(
    folders: Folders,
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the checkpoint in ``folders``, whose format is recognised, as :func:`merge_fsdp` does.

    ``format`` of the result says what it was taken for. UsageError also for what is no sharded
    checkpoint, like a model that is one already.

    >>> import tempfile, torch
    >>> from ckpt_tool import MergeOptions, merge_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     step = Path(folder, "global_step_7")
    ...     step.mkdir()
    ...     torch.save({"norm.weight": torch.ones(6)}, step / "model_world_size_1_rank_0.pt")
    ...     result = merge_checkpoint(step, f"{folder}/out", MergeOptions(keep_names=True))
    ...     print(result.format, result.step)
    fsdp 7
    """
    return merge(Job(folders, out), options, progress)


def merge_fsdp(
    folders: Folders,
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the FSDP rank files in ``folders`` (one per node) into the model folder ``out``.

    Under torchrun every process calls this and writes its share; the result is the same.
    ``progress`` is told of bytes that are compared and written. Returns what was written, sizes in
    bytes. Raises CheckpointError, MappingError, OutputError, UsageError or FormatError; ``out``
    then does not exist, or is what it was.

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
    ...     _ = dcp.save(state, checkpoint_id=folder)
    ...     result = merge_dcp(folder, f"{folder}/out", MergeOptions(keep_names=True))
    ...     print(result.format, result.num_tensors)
    dcp 1
    """
    return merge(Job(folder, out, "dcp"), options, progress)


def merge_deepspeed(
    folder: str | Path,
    out: str | Path,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the checkpoint of DeepSpeed in ``folder``, as :func:`merge_fsdp` does rank files.

    Of ZeRO 0 to 3; what was trained comes from the float32 weights of the optimizer.

    >>> import tempfile, torch
    >>> from ckpt_tool import MergeOptions, merge_deepspeed
    >>> states = {"module": {"norm.weight": torch.ones(4)}, "param_shapes": None}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(states, f"{folder}/mp_rank_00_model_states.pt")
    ...     result = merge_deepspeed(folder, f"{folder}/out", MergeOptions(keep_names=True))
    ...     print(result.format, result.num_tensors)
    deepspeed 1
    """
    return merge(Job(folder, out, "deepspeed"), options, progress)


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
    with join_team(options.jobs, progress) as team:
        return merge_as_team(job, options, team, upload)


def merge_as_team(
    job: Job, options: MergeOptions, team: Team, upload: Upload | None = None
) -> WriteResult:
    """The same by processes that have joined already; ``options.jobs`` is not looked at."""
    out = settle_out(job.out, options.write, is_sent=upload is not None)
    target = team.world.first(lambda: check_upload(upload) if upload is not None else None)
    plan = make_plan(job.paths, job.kind, options, team)
    team.world.first(lambda: _require_replaced(target, plan))
    return write(plan, out, options.write, team)


@dataclass(frozen=True)
class Preview:
    """What a merge would do: the plan, where an upload would go, and whether the result loads."""

    plan: HubPlan
    out: Place
    target: Target | None
    verdict: Verdict


def preview_merge(
    job: Job,
    options: MergeOptions | None = None,
    progress: Progress | None = None,
    upload: Upload | None = None,
) -> Preview:
    """What :func:`merge` would write, with all that it would refuse refused; writes nothing."""
    options = options or MergeOptions()
    out = settle_out(job.out, options.write, is_sent=upload is not None)
    team = form_team_alone(options.jobs, progress)
    target = check_upload(upload) if upload is not None and is_first() else None
    plan = make_plan(job.paths, job.kind, options, team)
    _require_replaced(target, plan)
    plan.check(out, options.write)
    probe_place(out)
    return Preview(plan, out, target, judge_plan(plan, options.write, team.progress))


def send(result: WriteResult, upload: Upload, *, show: bool = False) -> UploadResult:
    """Upload what was merged, when all of it is there; raises what uploading does."""
    return upload_folder(str(result.output), upload, show=show)


def _require_replaced(target: Target | None, plan: HubPlan) -> None:
    if target is not None:
        target.require_replaced(list_weight_names(plan))
