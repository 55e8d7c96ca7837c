"""What Megatron-LM saves with `--use-megatron-fsdp --ckpt-format fsdp_dtensor`, on the CPU.

The wrapper, its buffers and DTensors, what prepares the state for saving, and the saving are
megatron-core's, Megatron-LM's and torch's own; only what asks for a GPU is replaced: streams,
random states and the kind of device that the meshes are of. Gradients are never computed. What has
Transformer Engine's names was made by the local layers, and renamed before it was written. Needs
`einops`, and the `megatron.training` that comes with megatron-core from 0.17 on.
"""

import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.fsdp import mcore_fsdp_adapter
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import Float16Module
from torch.distributed.checkpoint import FileSystemWriter, save

from ckpt_tool.plans.checks.megatron_child.cpu import call

from .megatron_adam import make_adam
from .megatron_names import to_engine
from .megatron_rank_files import ITERATION


def save_fsdp_dtensor(chunks: Sequence[GPTModel], out: Path, settings: Mapping[str, Any]) -> None:
    """One iteration's folder, and the tracker that names it.

    `settings`: `names`, "local" or "te" (Transformer Engine's, whose experts are grouped);
    `main_dtype`, of the weights that are trained and saved, that of the model without it;
    `optimizer`, whether its state is saved too.
    """
    from megatron.training import checkpointing

    (chunk,) = chunks
    folder = out / f"iter_{ITERATION:07d}"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
        (out / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    dist.barrier()
    run = Namespace(
        ckpt_format="fsdp_dtensor",
        swiglu=chunk.config.gated_linear_unit,
        num_experts=chunk.config.num_moe_experts,
        use_distributed_optimizer=True,
        no_save_optim=not settings.get("optimizer"),
        no_save_rng=True,
    )
    with _without_gpu():
        wrapped = _wrap(chunk, settings.get("main_dtype"))
        adam = make_adam([wrapped]) if settings.get("optimizer") else None
        state = call(
            checkpointing.generate_state_dict,
            args=run,
            model=[wrapped.module],
            optimizer=adam,
            opt_param_scheduler=None,
            rng_state=None,
            iteration=ITERATION,
        )
        state = checkpointing.preprocess_fsdp_dtensor_state_dict(run, state, wrapped.module)
        if settings.get("names") == "te":
            state["model"] = _name_as_engine(state["model"])
        os.chdir(out)  # the path that is given is written
        save(state, storage_writer=FileSystemWriter(folder.name))


def _wrap(chunk: GPTModel, main_dtype: str | None) -> Any:
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        data_parallel_sharding_strategy="optim_grads_params",
        use_megatron_fsdp=True,
        megatron_fsdp_main_params_dtype=getattr(torch, main_dtype) if main_dtype else None,
    )
    half = Float16Module(chunk.config, chunk)
    return mcore_fsdp_adapter.FullyShardedDataParallel(
        chunk.config, settings, half, device=torch.device("cpu")
    )


def _name_as_engine(state: Mapping[str, Any]) -> dict[str, Any]:
    """As Transformer Engine's layers are named, whose experts are numbered where names end."""
    found = {}
    for name, key in to_engine({name.removeprefix("module.") for name in state}).items():
        grouped = re.sub(r"local_experts\.(\d+)\.(\w+\.weight)", r"\2\1", key)
        found[f"module.{grouped}"] = state[f"module.{name}"]
    return found


class _Stream:
    """A stream of work that is done at once."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextmanager
def _without_gpu() -> Iterator[None]:
    """Inside, whatever asks for the GPU has the CPU."""
    meshes = mcore_fsdp_adapter.DeviceMesh

    class Meshes(meshes):  # type: ignore[misc, valid-type]
        @staticmethod
        def from_group(*arguments: Any, **options: Any) -> Any:
            return meshes.from_group(*arguments, **{**options, "device_type": "cpu"})

    replaced = {
        "Stream": lambda *_, **__: _Stream(),
        "current_stream": lambda *_: _Stream(),
        "stream": lambda *_: nullcontext(),
        "current_device": lambda: 0,
        "empty_cache": lambda: None,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda *_: None,
    }
    on_cpu = mock.patch.object(mcore_fsdp_adapter, "DeviceMesh", Meshes)
    with mock.patch.multiple(torch.cuda, **replaced), on_cpu:
        yield
