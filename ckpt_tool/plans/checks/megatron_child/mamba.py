"""megatron-core's layers of Nemotron-H: Mamba's mixers, and experts of a width of their own.

It takes norm and kernels of Mamba from ``mamba_ssm``, which needs a GPU, and the projections of
such experts from Transformer Engine. Here they are given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.moe import moe_layer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from ckpt_tool.plans.checks.megatron_child.cpu import UnknownModelError, call, replace_attribute

_KERNELS = "mamba_ssm.ops.triton"


class GatedNorm(torch.nn.Module):
    """The weight of the norm behind a scan."""

    def __init__(self, hidden_size: int, device: Any = None, dtype: Any = None, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))


class WholeLinear(torch.nn.Module):
    """A linear layer that every rank has whole, and which gives no bias."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **_: Any) -> None:
        super().__init__()
        weight = torch.empty(output_size, input_size, dtype=config.params_dtype)
        self.weight = torch.nn.Parameter(weight)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """What goes on, and no bias."""
        return torch.nn.functional.linear(states, self.weight), None

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Any, ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> Any:
        """The weight, and the state that Transformer Engine's layer has."""
        state = {**self.state_dict(keep_vars=True), "_extra_state": None}
        return call(
            make_sharded_tensors_for_checkpoint,
            state_dict=state,
            prefix=prefix,
            sharded_offsets=sharded_offsets,
        )


def describe_mamba(
    norm: type = GatedNorm, kernels: Mapping[str, Any] | None = None, **names: Any
) -> ModuleSpec:
    """A Mamba layer with local linear layers.

    ``kernels``: those that the mixer calls, by their names in ``mamba_ssm``; ``names``: what is to
    be called otherwise in the mixer's module, which is imported here for the first time.
    """
    stubs = {
        f"{_KERNELS}.layernorm_gated": {"RMSNorm": norm},
        f"{_KERNELS}.ssd_combined": {
            "mamba_chunk_scan_combined": _refuse,
            "mamba_split_conv1d_scan_combined": _refuse,
            **(kernels or {}),
        },
    }
    with ExitStack() as stack:
        for name, held in stubs.items():
            stack.enter_context(_stub(name, held))
        try:
            from megatron.core.ssm import mamba_context_parallel, mamba_layer, mamba_mixer
        except ModuleNotFoundError as error:  # triton, which torch for CPUs comes without
            raise UnknownModelError(f"its Mamba imports {error.name}, which is missing") from error
    vars(mamba_mixer).update(HAVE_EINOPS=True, **names)
    vars(mamba_context_parallel).update(HAVE_EINOPS=True)
    mixer = ModuleSpec(
        mamba_mixer.MambaMixer,
        submodules=mamba_mixer.MambaMixerSubmodules(ColumnParallelLinear, RowParallelLinear),
    )
    return ModuleSpec(
        mamba_layer.MambaLayer,
        submodules=mamba_layer.MambaLayerSubmodules(
            norm=WrappedTorchNorm, mixer=mixer, mamba_bda=get_bias_dropout_add
        ),
    )


@contextmanager
def build_without_gpu(config: TransformerConfig) -> Iterator[None]:
    """Inside, mixers ask for no GPU's random state, and experts for no Transformer Engine."""
    given = {"HAVE_TE": True, "TELinear": WholeLinear} if _has_narrow_experts(config) else {}
    with ExitStack() as stack:
        # Initial values are drawn from that state, of which there are none here.
        stack.enter_context(replace_attribute(CudaRNGStatesTracker, "fork", _fork_nothing))
        for name, value in given.items():
            vars(moe_layer).setdefault(name, None)  # it has none where it found no engine
            stack.enter_context(replace_attribute(moe_layer, name, value))
        yield


def _has_narrow_experts(config: TransformerConfig) -> bool:
    return bool(getattr(config, "moe_latent_size", None))


def _fork_nothing(*_: Any) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def _stub(name: str, held: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a module of that name can be imported."""
    before = sys.modules.get(name)
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(held)
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def _refuse(*_: Any, **__: Any) -> None:
    raise NotImplementedError("this model is not run")
