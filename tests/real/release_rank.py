"""One process that saves a tiny model with whatever release of megatron-core its Python has.

    <venv of the release>/bin/python -m tests.real.release_rank JOB RANK

JOB is the JSON of a `Job`. The model is cut by the plain rules below, not by megatron-core's, so
that a misunderstanding of what it saves cannot be on both sides of a comparison.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ckpt_tool.plans.checks.megatron_child.cpu import call, read_release

from .megatron_adam import list_trained, make_adam
from .megatron_copy import State, full_state, read_config, read_tensors
from .megatron_gpt import build_chunks
from .megatron_hybrid import gpt_name
from .megatron_jobs import Checkpoint, SaveRanks, Sizes
from .megatron_rank_files import ITERATION, save_ranks, training_state
from .megatron_world import patch_for_cpu, world

_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_PADDING = 99.0
#: What the optimizer's weights are of the model's: no bfloat16 has them.
FINER = 1 + 2**-12


@dataclass(frozen=True)
class Job:
    """What the ranks save together.

    `form`: "torch_dist" (a bare folder), "megatron-lm" (one in an iteration folder, with all that
    training keeps there), "optimizer" (that one, without the model), "ranks" (one torch file per
    rank) or "fsdp_dtensor" (Megatron-FSDP's). `metadata` is what `sharded_state_dict` is given. Of
    a `hybrid` one the model is a HybridModel.
    """

    model: str
    out: str
    store: str
    form: str
    sizes: dict[str, int]
    world_size: int
    metadata: dict[str, Any]
    dtype: str
    vocab_multiple: int
    hybrid: bool = False


def run(job: Job, rank: int) -> None:
    torch.set_num_threads(1)
    patch_for_cpu()
    _patch_writer()
    sizes = Sizes(**job.sizes)
    hf = read_config(Path(job.model))
    with world(sizes, rank, job.world_size, Path(job.store)):
        dtype = getattr(torch, job.dtype)
        chunks = build_chunks(hf, sizes, job.vocab_multiple, dtype, hybrid=job.hybrid)
        whole = full_state(read_tensors(Path(job.model)), hf)
        for chunk in chunks:
            _fill(chunk, whole)
        _SAVES.get(job.form, _save_torch_dist)(chunks, job)
        dist.barrier()


def _patch_writer() -> None:
    """Up to 0.12 a private function of torch is called as older torches defined it."""
    if read_release() >= (0, 13):
        return
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from torch.distributed.checkpoint import filesystem

    if not hasattr(filesystem, "_StorageWriterTransforms"):
        return
    original = filesystem._write_item

    def write_item(*arguments: Any) -> Any:
        form = filesystem.SerializationFormat.TORCH_SAVE
        return original(filesystem._StorageWriterTransforms(), *arguments, form)

    filesystem_async._write_item = write_item


def _fill(chunk: GPTModel, whole: State) -> None:
    """Copy this process's part of every tensor, and require that there is one for each."""
    for name, tensor in chunk.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and not name.endswith("_extra_state"):
            tensor.data.copy_(_part(name, whole[_whole_name(chunk, name)], tensor.shape))


def _whole_name(chunk: GPTModel, name: str) -> str:
    """The name in a model that is not split: layers and experts are counted from its first."""

    def layer(found: re.Match[str]) -> str:
        return f"decoder.layers.{chunk.decoder.layers[int(found[1])].layer_number - 1}."

    def expert(found: re.Match[str]) -> str:
        count = chunk.config.num_moe_experts // chunk.config.expert_model_parallel_size
        first = parallel_state.get_expert_model_parallel_rank() * count
        return f"local_experts.{first + int(found[1])}."

    name = re.sub(r"^decoder\.layers\.(\d+)\.", layer, name)
    name = gpt_name(chunk, name)
    return re.sub(r"local_experts\.(\d+)\.", expert, name)


def _part(name: str, whole: Tensor, shape: torch.Size) -> Tensor:
    """This tensor-parallel process's part, of the one axis, if any, that is shorter here."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    if name.endswith("linear_fc1.weight") and whole.shape != shape:
        half = torch.Size([shape[0] // 2, *shape[1:]])
        return torch.cat([_part("", piece, half) for piece in whole.chunk(2)])
    if name in _VOCABULARY:
        rows = shape[0] * parallel_state.get_tensor_model_parallel_world_size()
        padding = torch.full((rows - len(whole), shape[1]), _PADDING, dtype=whole.dtype)
        whole = torch.cat([whole, padding])
    for axis, (all_of_it, here) in enumerate(zip(whole.shape, shape, strict=True)):
        if all_of_it != here:
            return whole.narrow(axis, rank * here, here)
    return whole


def _save_torch_dist(chunks: Sequence[GPTModel], job: Job) -> None:
    """A folder of the model alone, or, as Megatron-LM writes it, an iteration with its training."""
    folder, metadata = Path(job.out), dict(job.metadata)
    with_training = job.form in ("megatron-lm", "optimizer")
    if with_training:
        folder /= f"iter_{ITERATION:07d}"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
        if with_training:
            (folder.parent / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    dist.barrier()
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    given = {**metadata, "dp_cp_group": group}
    with _OnCpu():
        adam = _optimizer(chunks) if with_training else None
    state = chunks[0].sharded_state_dict(metadata=given)
    if adam is not None:
        # Before there were several layouts of the optimizer's state there was only the default.
        options = {"metadata": given} if read_release() >= (0, 13) else {}
        states = adam.sharded_state_dict(state, **options)
        training = training_state([], Sizes(**job.sizes))
        where = ((1, dist.get_world_size()), (0, dist.get_rank()))
        rng = ShardedObject("rng_state", training["rng_state"], *where)
        state = {**training, "model": state, "optimizer": states, "rng_state": rng}
        if job.form == "optimizer":
            del state["model"]
    call(
        dist_checkpointing.save,
        sharded_state_dict=state,
        checkpoint_dir=str(folder),
        content_metadata=metadata,
    )


class _OnCpu(TorchFunctionMode):
    """The optimizer asks for tensors on the GPU by name, and whether they are there."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = "cpu"
        result = function(*args, **kwargs)
        is_name = function is torch.Tensor.type and isinstance(result, str)
        return result.replace("torch.", "torch.cuda.") if is_name else result


def _optimizer(chunks: Sequence[GPTModel]) -> Any:
    """Adam with its state cut over the data-parallel processes, and weights finer than bfloat16."""
    reduction = DistributedDataParallelConfig(use_distributed_optimizer=True)
    wrapped = [DistributedDataParallel(chunk.config, reduction, chunk) for chunk in chunks]
    adam = make_adam(wrapped)
    for parameter in list_trained(adam):
        parameter.data *= FINER
    return adam


def _save_ranks(chunks: Sequence[GPTModel], job: Job) -> None:
    """Megatron-LM's `--ckpt-format torch`."""
    model, out = Path(job.model), Path(job.out)
    options = {"style": "megatron-lm", "names": "local", "experts": "sequential"}
    # The source is not asked for: the model is filled already.
    save_ranks(chunks, SaveRanks(model, out, Checkpoint(out), Sizes(**job.sizes), **options))


def _save_fsdp_dtensor(chunks: Sequence[GPTModel], job: Job) -> None:
    from .megatron_fsdp import save_fsdp_dtensor  # since 0.17

    with _OnCpu():
        save_fsdp_dtensor(chunks, Path(job.out), job.metadata)


_SAVES = {"ranks": _save_ranks, "fsdp_dtensor": _save_fsdp_dtensor}

if __name__ == "__main__":
    run(Job(**json.loads(sys.argv[1])), int(sys.argv[2]))
