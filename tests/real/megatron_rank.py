"""What one process of a gloo world does: build, fill, save and run real megatron-core models."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ckpt_tool.plans.checks.megatron_child.cpu import call

from .megatron_copy import copy_into, read_config
from .megatron_gpt import build_chunks
from .megatron_jobs import Checkpoint, Job, Logits, Save, SaveRanks
from .megatron_names import engine_states, rename_to_engine
from .megatron_rank_files import save_ranks
from .megatron_world import all_gather_vocabulary, patch_for_cpu, world

_LAYOUTS: dict[str, dict[str, bool]] = {
    "default": {},
    "per-layer": {"non_homogeneous_layers": True},
    "singleton": {"singleton_local_shards": True},
}
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def run_rank(jobs: Sequence[Job], world_size: int, rank: int, scratch: Path) -> None:
    """Do the jobs together with the other ranks, which meet through files in `scratch`.

    Jobs in a row that have the same sizes share megatron-core's groups: to leave them takes as long
    as half a job.
    """
    torch.set_num_threads(1)
    patch_for_cpu()
    for number, (sizes, same) in enumerate(groupby(jobs, key=lambda job: job.sizes)):
        with world(sizes, rank, world_size, scratch / f"rendezvous{number}_of_{world_size}"):
            for job in same:
                _do(job)


def _do(job: Job) -> None:
    try:
        _run(job)
        # Nobody gets into a job before all have come out of the one before: it may read what that
        # one wrote.
        dist.barrier()
    except BaseException:  # torch's CheckpointException is no Exception
        print(f"failed: {job}", file=sys.stderr, flush=True)
        raise


def _run(job: Job) -> None:
    dtype = getattr(torch, job.dtype)
    hf = read_config(job.model)
    of = _model_of(job)
    chunks = build_chunks(
        hf, job.sizes, job.vocab_multiple, dtype, hybrid=of.hybrid, fused=of.fused
    )
    if job.source is None:
        assert job.sizes.is_whole, "only a whole model is filled straight from Hugging Face"
        copy_into(chunks[0], job.model)
    else:
        strict = job.strict if isinstance(job, Logits) else "assume_ok_unexpected"
        _load(chunks, job.source, strict, hf["vocab_size"])
    if isinstance(job, Save):
        _save(chunks, job.out)
        return
    if isinstance(job, SaveRanks):
        save_ranks(chunks, job)
        return
    if job.saved is not None:
        _save(chunks, job.saved)
    _write_logits(chunks, job)


def _model_of(job: Job) -> Checkpoint:
    """What says which model it is: what fills it, or, where that is no checkpoint, what is saved.

    Where both are checkpoints they are of the same one.
    """
    said = job.source if job.source is not None else job.out
    return said if isinstance(said, Checkpoint) else Checkpoint(said)


def _sharded_state(chunks: Sequence[GPTModel], checkpoint: Checkpoint) -> dict[str, Any]:
    """What megatron-core saves and loads, one dictionary for each chunk of the pipeline stage."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"dp_cp_group": group, **_LAYOUTS[checkpoint.layout]}
    state: dict[str, ShardedStateDict] = {}
    for number, chunk in enumerate(chunks):
        part = chunk.sharded_state_dict(metadata=metadata)
        state[f"model{number}"] = part
        if checkpoint.names == "te":
            rename_to_engine(part)
        if checkpoint.engine_states:
            state[f"engine{number}"] = engine_states(part)
    for part in state.values():
        add_prefix_for_sharding(part, checkpoint.prefix)
    return state


def _save(chunks: Sequence[GPTModel], checkpoint: Checkpoint) -> None:
    if dist.get_rank() == 0:
        checkpoint.folder.mkdir(parents=True)
    dist.barrier()
    call(
        dist_checkpointing.save,
        sharded_state_dict=_sharded_state(chunks, checkpoint),
        checkpoint_dir=str(checkpoint.folder),
        content_metadata=_LAYOUTS[checkpoint.layout],
    )


def _load(chunks: Sequence[GPTModel], checkpoint: Checkpoint, strict: str, vocab: int) -> None:
    for chunk in chunks:
        for _, tensor in _tensors(chunk):
            tensor.fill_(torch.nan)  # or an untouched tensor could pass for a loaded one
    state = _sharded_state(chunks, checkpoint)
    loaded = dist_checkpointing.load(state, str(checkpoint.folder), strict=strict)
    for number, chunk in enumerate(chunks):
        known = chunk.state_dict()
        # One down projection asks for the states of two, which it does not have.
        part = {k: v for k, v in loaded[f"model{number}"].items() if not _is_state(k) or k in known}
        chunk.load_state_dict(part)
        _require_filled(chunk, vocab)


def _is_state(name: str) -> bool:
    return name.endswith("_extra_state")


def _tensors(chunk: GPTModel) -> list[tuple[str, Tensor]]:
    state = chunk.state_dict(keep_vars=True)
    return [(name, value.data) for name, value in state.items() if isinstance(value, Tensor)]


def _require_filled(chunk: GPTModel, vocab: int) -> None:
    """Every element must have been loaded but the rows that only pad the vocabulary."""
    for name, tensor in _tensors(chunk):
        if name in _VOCABULARY:
            first = parallel_state.get_tensor_model_parallel_rank() * len(tensor)
            tensor[max(vocab - first, 0) :] = 0
        assert tensor.isfinite().all(), f"{name} was not loaded"


def _write_logits(chunks: Sequence[GPTModel], job: Logits) -> None:
    vocab = read_config(job.model)["vocab_size"]
    found = _forward(chunks, load_file(job.inputs)["input_ids"], job.sizes.pp)
    if not found:
        return
    # Sequence first, and cut along the vocabulary, is how megatron-core has them.
    whole = [all_gather_vocabulary(part).transpose(0, 1)[..., :vocab] for part in found]
    ranks = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
    )
    if ranks == (0, 0):
        names = ["logits", "mtp_logits"]
        logits = dict(zip(names, (part.contiguous() for part in reversed(whole)), strict=False))
        job.out.parent.mkdir(parents=True, exist_ok=True)
        save_file(logits, job.out)


@torch.no_grad()
def _forward(chunks: Sequence[GPTModel], ids: Tensor, pipeline: int) -> list[Tensor]:
    """The output layer's results where the pipeline ends: of each predicted token, then the main.

    Stage after stage; the owner of one hands its result to the whole pipeline group.
    """
    batch, sequence = ids.shape
    positions = torch.arange(sequence).expand(batch, sequence)
    future = torch.ones(1, 1, sequence, sequence, dtype=torch.bool).triu(1)
    results: list[Tensor] = []
    config = chunks[0].config
    hidden = torch.empty(sequence, batch, config.hidden_size, dtype=config.params_dtype)
    for stage in range(pipeline * len(chunks)):
        owner = stage % pipeline
        if owner == parallel_state.get_pipeline_model_parallel_rank():
            chunk = chunks[stage // pipeline]
            chunk.set_input_tensor(hidden)
            if chunk.post_process:
                # Megatron-core predicts further tokens only for the sake of a loss, so labels have
                # to be given; it then returns the loss, for which it overwrites the logits.
                chunk.output_layer.register_forward_hook(
                    lambda module, inputs, output: results.append(output[0].clone())
                )
            hidden = chunk(ids, positions, future, labels=ids)
        if stage + 1 < pipeline * len(chunks):
            group = parallel_state.get_pipeline_model_parallel_group()
            hidden = hidden.contiguous()
            dist.broadcast(hidden, group=group, group_src=owner)
    return results
