"""What megatron-core needs in order to build a model without a GPU, in one process."""

from __future__ import annotations

import copy
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed import distributed_c10d

Result = TypeVar("Result")


class UnknownModelError(Exception):
    """The installed megatron-core has no such model."""


def hide_gpus() -> None:
    """Have every machine behave like one without a GPU; before anything initialises CUDA.

    What is proven here does not depend on one, and a training may need its memory.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def set_up() -> None:
    """Patch torch and megatron-core and make their process groups, of this process alone."""
    _patch_compiler()
    _patch_device()
    _patch_latent_attention()
    _patch_norms()
    if read_release() < (0, 12):
        _patch_expert_width()
    if read_release() < (0, 15):
        _patch_lone_pieces()
    # A store in memory: nothing to meet at, no port that another run could have taken.
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    from megatron.core import parallel_state

    call(parallel_state.initialize_model_parallel, create_gloo_process_groups=False)


def tear_down() -> None:
    """Leave no process group behind: torch warns of one when the process ends."""
    distributed.destroy_process_group()


def call(function: Callable[..., Result], /, **arguments: Any) -> Result:
    """Call ``function`` with those of the arguments that this release of megatron-core knows."""
    known = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in known})


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have ``owner.name`` be ``value`` inside the block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def read_release() -> tuple[int, ...]:
    """The installed megatron-core, as in (0, 16)."""
    import megatron.core

    return tuple(int(part) for part in re.findall(r"\d+", megatron.core.__version__)[:2])


def _patch_compiler() -> None:
    """Functions are compiled when they first run, which none does; importing the compiler is slow.

    Before megatron-core is imported, which asks for it then.
    """

    def compile_nothing(function: Any = None, **_: Any) -> Any:
        return function if function is not None else compile_nothing

    torch.compile = compile_nothing  # type: ignore[assignment]


def _patch_device() -> None:
    """Routers make their tensors on the current GPU; here the whole model is on the meta device."""
    torch.cuda.current_device = lambda: torch.device("meta")  # type: ignore[assignment, return-value]


def _patch_latent_attention() -> None:
    """Since 0.16 it takes the stubs of Transformer Engine, which are no types, for the engine."""
    from megatron.core.transformer import multi_latent_attention

    multi_latent_attention.HAVE_TE = False


def _patch_norms() -> None:
    """Local layers take Apex's norm where that is installed, which knows no RMSNorm."""
    from megatron.core.models.gpt import GPTModel  # noqa: F401  imports all that name a norm
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core.") and hasattr(module, "LNImpl"):
            vars(module)["LNImpl"] = WrappedTorchNorm


def _patch_expert_width() -> None:
    """Up to 0.11 only Transformer Engine's experts may be of another width than a dense MLP.

    They have the same keys as these.
    """
    from megatron.core.transformer.moe.experts import SequentialMLP

    build = SequentialMLP.__init__

    def init(self: Any, experts: int, config: Any, submodules: Any) -> None:
        config = copy.copy(config)
        config.ffn_hidden_size = config.moe_ffn_hidden_size
        build(self, experts, config, submodules)

    SequentialMLP.__init__ = init


def _patch_lone_pieces() -> None:
    """Up to 0.14 all pieces of a tensor are loaded at once, but for those of other processes.

    So there seems to be another process wherever a piece says where the rest is.
    """
    from megatron.core.dist_checkpointing.strategies import torch as strategy

    convert = strategy.sharded_tensor_to_torch_sharded_tensor

    def converted(*arguments: Any, **options: Any) -> Any:
        with (
            replace_attribute(distributed, "get_world_size", lambda *_: 2),
            replace_attribute(distributed_c10d, "get_process_group_ranks", lambda *_: [0, 1]),
        ):
            return convert(*arguments, **options)

    strategy.sharded_tensor_to_torch_sharded_tensor = converted
