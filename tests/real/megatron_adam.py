"""Megatron-core's distributed Adam on the CPU, so that there is a state of it to save."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import optimizer

from ckpt_tool.plans.checks.megatron_child.cpu import call


def make_adam(wrapped: Sequence[Any]) -> Any:
    """Adam of chunks wrapped for data parallelism, after one step that changes no weight."""
    config = wrapped[0].config
    settings = call(
        optimizer.OptimizerConfig,
        optimizer="adam",
        lr=0.0,
        bf16=config.bf16,
        params_dtype=config.params_dtype,
        use_distributed_optimizer=True,
        clip_grad=0.0,
        weight_decay=0.0,
    )
    adam = call(
        optimizer.get_megatron_optimizer,
        config=settings,
        model_chunks=list(wrapped),
        use_gloo_process_groups=False,
    )
    for parameter in list_trained(adam):
        parameter.grad = torch.full_like(parameter, 0.5)
    for each in _list_optimizers(adam):
        each.optimizer.step()
    return adam


def list_trained(adam: Any) -> Iterator[torch.Tensor]:
    """What the optimizers of it train: this process's parts of the weights, in float32."""
    for each in _list_optimizers(adam):
        for group in each.optimizer.param_groups:
            yield from group["params"]


def _list_optimizers(adam: Any) -> Sequence[Any]:
    found: Sequence[Any] = getattr(adam, "chained_optimizers", [adam])
    return found
