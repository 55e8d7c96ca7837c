"""What megatron-core needs in order to run on the CPU, with gloo in place of NCCL."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fusions import fused_softmax
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.moe import moe_utils
from torch import Tensor

from ckpt_tool.plans.checks.megatron_child.cpu import call

from .megatron_jobs import Sizes

# A rank that dies leaves the others in a collective: they shall give up before a test run does.
_TIMEOUT = timedelta(seconds=60)


def patch_for_cpu() -> None:
    """Replace the few things in torch and megatron-core that need a GPU. Once per process."""
    _patch_device()
    _patch_random_states()
    _patch_engine_checks()


def _patch_device() -> None:
    """Routers move their tensors to the current device, and saving waits for it.

    A pipeline's last stage moves the copy of the embedding that it ties to, or predicts with.
    """
    cpu = torch.device("cpu")
    vars(torch.cuda).update(current_device=lambda: cpu, synchronize=lambda *_: None)
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[assignment, method-assign, misc]
    fused_softmax.get_sliding_window_causal_mask = _mask_window


def _mask_window(queries: int, keys: int, window: tuple[int, int]) -> Tensor:
    """What no query sees: what is ahead, and what is further back than the window."""
    back = torch.arange(queries)[:, None] - torch.arange(keys)[None]
    return (back > window[0]) | (back < 0)


def _patch_random_states() -> None:
    """Attention forks the GPU's random state for its dropout, which is off here."""

    def fork(self: CudaRNGStatesTracker, *_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    CudaRNGStatesTracker.fork = fork


def _patch_engine_checks() -> None:
    """Two modules do not notice that Transformer Engine is missing.

    One believes in it because megatron-core's stubs import, the other forgets to define a name.
    """
    multi_latent_attention.HAVE_TE = False
    moe_utils.te_general_gemm = None


def init(sizes: Sizes, rank: int, world_size: int, store: Path) -> None:
    """Join the other processes, which meet through the file `store`, in megatron-core's groups."""
    dist.init_process_group(
        "gloo",
        init_method=store.resolve().as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
    )
    call(
        parallel_state.initialize_model_parallel,
        tensor_model_parallel_size=sizes.tp,
        pipeline_model_parallel_size=sizes.pp,
        virtual_pipeline_model_parallel_size=sizes.vpp,
        expert_model_parallel_size=sizes.ep,
        expert_tensor_parallel_size=sizes.etp,
        create_gloo_process_groups=False,  # a second set, needed only where the first is NCCL
    )


def destroy() -> None:
    """Leave all groups, so that a next world can have other sizes.

    Megatron-core only forgets its groups; their threads, fifty a world, end with the default group.
    """
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@contextmanager
def world(sizes: Sizes, rank: int, world_size: int, store: Path) -> Iterator[None]:
    """Have megatron-core's groups for `sizes` inside the block."""
    init(sizes, rank, world_size, store)
    try:
        yield
    finally:
        destroy()


def all_gather_vocabulary(logits: Tensor) -> Tensor:
    """Join the last axis over the tensor-parallel processes."""
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(logits) for _ in range(group.size())]
    dist.all_gather(parts, logits.contiguous(), group=group)
    return torch.cat(parts, dim=-1)
