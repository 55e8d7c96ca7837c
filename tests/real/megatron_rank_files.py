"""Files that ranks save each for itself, with `torch.save` of their module's state.

Folders and keys are those of Megatron-LM's `megatron/training/checkpointing.py`
(`get_checkpoint_name`, `generate_state_dict`) and of verl 0.4's `MegatronCheckpointManager`, which
saves a list with one state for each pipeline chunk. The states are those of real models. Layers of
Transformer Engine cannot be built without a GPU: their names are given to local ones.
"""

import argparse
import io
import random
import re
import shutil
import types
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor

from .megatron_jobs import SaveRanks, Sizes
from .megatron_names import to_engine

State = dict[str, Any]

_LOCAL_EXPERT = re.compile(r"(.*\.experts)\.local_experts\.(\d+)\.linear_fc([12])\.weight")
_ITERATION = 7


def save_ranks(chunks: Sequence[GPTModel], job: SaveRanks) -> None:
    """Write this rank's file, unless another rank has the same one."""
    states = [_state(chunk, job) for chunk in chunks]
    name = _folder_name(job.sizes)
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, name)
    if dist.get_rank() == 0:
        _put_beside(job)
    dist.barrier()
    if names.index(name) != dist.get_rank():
        return
    if job.style == "verl":
        path, content = job.out / "model" / name / "model.pt", states
    else:
        path = job.out / f"iter_{_ITERATION:07d}" / name / "model_optim_rng.pt"
        content = _training_state(states, job.sizes)
    path.parent.mkdir(parents=True)
    torch.save(content, path)


def _put_beside(job: SaveRanks) -> None:
    job.out.mkdir(parents=True)
    if job.style == "verl":
        shutil.copytree(
            job.model, job.out / "hf_config_and_tokenizer", ignore=lambda *_: _weights(job.model)
        )
    else:
        (job.out / "latest_checkpointed_iteration.txt").write_text(str(_ITERATION))


def _weights(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "safetensors" in path.name]


def _folder_name(sizes: Sizes) -> str:
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if sizes.pp > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    if sizes.ep > 1:
        name += f"_{parallel_state.get_expert_model_parallel_rank():03d}"
    return name


def _state(chunk: GPTModel, job: SaveRanks) -> State:
    state: State = dict(chunk.state_dict())
    if job.names == "te":
        state = _engine_state(state)
    if job.experts != "sequential":
        state = _grouped(state) if job.experts == "grouped" else _numbered(state)
    return state


def _engine_state(state: State) -> State:
    """Other names, states of layers that have none here, and down projections on every rank."""
    names = to_engine(set(state))
    renamed = {names[name]: value for name, value in state.items()}
    for name, value in list(renamed.items()):
        if "_down_proj.weight" in name:
            renamed[name] = _gathered(value)
        if name.endswith(".self_attention.linear_proj.weight"):
            attention = name.replace("linear_proj.weight", "core_attention._extra_state")
            renamed[attention] = io.BytesIO(b"scales")
    return renamed


def _gathered(local: Tensor) -> Tensor:
    """A tensor that tensor parallelism cuts along its rows, whole."""
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [torch.empty_like(local) for _ in range(group.size())]
    dist.all_gather(parts, local.contiguous(), group=group)
    return torch.cat(parts)


def _numbered(state: State) -> State:
    """As in `TEGroupedMLP`: the number of an expert is the end of the name."""
    return {_LOCAL_EXPERT.sub(r"\1.linear_fc\3.weight\2", name): v for name, v in state.items()}


def _grouped(state: State) -> State:
    """As in `GroupedMLP`, whose `forward` views `weight1` as [experts, hidden, 2 x ffn]."""
    result: State = {}
    experts: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for name, value in state.items():
        found = _LOCAL_EXPERT.fullmatch(name)
        if found is None:
            result[name] = value
        else:
            assert len(experts[found[1], found[3]]) == int(found[2])
            experts[found[1], found[3]].append(value.t())
    for (stem, layer), transposed in experts.items():
        hidden = transposed[0].shape[0 if layer == "1" else 1]
        stacked = torch.stack(transposed)
        shape = (hidden, -1) if layer == "1" else (-1, hidden)
        result[f"{stem}.weight{layer}"] = stacked.reshape(shape)
    return result


def _training_state(states: Sequence[State], sizes: Sizes) -> State:
    """What Megatron-LM saves in one file: the model, and everything that training goes on from."""
    names = ["model"] if len(states) == 1 else [f"model{n}" for n in range(len(states))]
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2)
    optimizer = torch.optim.Adam([weight])
    optimizer.step()
    rng = {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {},
    }
    return {
        "args": _arguments(sizes),
        "checkpoint_version": 3.0,
        "iteration": _ITERATION,
        "num_floating_point_operations_so_far": 1.5e9,
        **dict(zip(names, states, strict=True)),
        "optimizer": {"optimizer": optimizer.state_dict(), "grad_scaler": None},
        "opt_param_scheduler": {"max_lr": 1e-4, "num_steps": 7},
        "rng_state": [rng],
        "rerun_state_machine": get_rerun_state_machine().state_dict(None, "torch"),
    }


def _arguments(sizes: Sizes) -> argparse.Namespace:
    return argparse.Namespace(
        tensor_model_parallel_size=sizes.tp,
        pipeline_model_parallel_size=sizes.pp,
        expert_model_parallel_size=sizes.ep,
        expert_tensor_parallel_size=sizes.etp,
        params_dtype=torch.bfloat16,
        attention_backend=AttnBackend.auto,
        activation_func=torch.nn.functional.silu,
        save=Path("checkpoints"),
        betas=(0.9, 0.95),
        blend=defaultdict(list, train=["a"]),
        extra=types.SimpleNamespace(dtypes={torch.int8, torch.float32}),
    )
