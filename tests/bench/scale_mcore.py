"""Checkpoints of very many small tensors: what planning takes is theirs, whatever their sizes.

``torch_dist``: what megatron-core's own `dist_checkpointing` writes of a Qwen3-MoE whose experts
have keys of their own (``singleton_local_shards``), by the keys and shapes of its GPTModel, with
the state of Transformer Engine's linear layers; no model is built. ``model``: the same weights as
a Hugging Face folder, the elements of which are a hole in the file. Run as a program, this module
writes the former; importing it imports no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

from tests.bench.scale import Model, Shape

#: 93,000 tensors with 80 layers, and a tenth of it.
LARGE = Model(80, 32, 4, 2, 16, 512, head_dim=8, experts=384)
SMALL = replace(LARGE, layers=8)


def count_tensors(model: Model) -> int:
    """How many the Hugging Face model has."""
    return sum(1 for _ in model.shapes())


def write_torch_dist(folder: Path, model: Model) -> None:
    """Have megatron-core write ``folder``, config.json beside; CalledProcessError where it fails.

    For 93,000 tensors it takes two minutes.
    """
    folder.mkdir(parents=True)
    _write_config(folder, model)
    command = [sys.executable, "-m", __name__, json.dumps(asdict(model)), str(folder)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def write_model(folder: Path, model: Model) -> None:
    """Write ``folder`` as `save_pretrained` does, one file, without its elements."""
    folder.mkdir(parents=True)
    _write_config(folder, model)
    rows, at = {}, 0
    for name, shape in model.shapes():
        end = at + 2 * prod(shape)
        rows[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(rows, separators=(",", ":")).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def _write_config(folder: Path, model: Model) -> None:
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2))


def list_keys(model: Model) -> Iterator[tuple[str, Shape]]:
    """Key and shape of every tensor of megatron-core's; of a state of a layer no shape: ()."""
    query, key = model.heads * model.head_dim, model.groups * model.head_dim
    table, norm = (model.vocabulary, model.hidden), (model.hidden,)
    yield "embedding.word_embeddings.weight", table
    for number in range(model.layers):
        layer = f"decoder.layers.{number}."
        attention = f"{layer}self_attention."
        yield f"{attention}linear_qkv.layer_norm_weight", norm
        yield from _list_linear(f"{attention}linear_qkv", (query + 2 * key, model.hidden))
        yield f"{attention}q_layernorm.weight", (model.head_dim,)
        yield f"{attention}k_layernorm.weight", (model.head_dim,)
        yield from _list_linear(f"{attention}linear_proj", (model.hidden, query))
        yield f"{layer}pre_mlp_layernorm.weight", norm
        yield f"{layer}mlp.router.weight", (model.experts, model.hidden)
        for expert in range(model.experts):
            yield from _list_expert(f"{layer}mlp.experts.experts.{expert}.", model)
    yield "decoder.final_layernorm.weight", norm
    yield "output_layer.weight", table


def _list_expert(prefix: str, model: Model) -> Iterator[tuple[str, Shape]]:
    for half in "wv":
        yield f"{prefix}linear_fc1.weight_{half}", (model.ffn, model.hidden)
    yield f"{prefix}linear_fc1._extra_state", ()
    yield from _list_linear(f"{prefix}linear_fc2", (model.hidden, model.ffn))


def _list_linear(module: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{module}.weight", shape
    yield f"{module}._extra_state", ()


def _save(model: Model, folder: Path) -> None:
    """As one rank, which has all of it."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

    from tests.real.megatron_jobs import Sizes
    from tests.real.megatron_world import patch_for_cpu, world

    state: dict[str, Any] = {}
    for key, shape in list_keys(model):
        if shape:
            whole = torch.full(shape, float(len(state)), dtype=torch.bfloat16)
            state[key] = ShardedTensor.from_rank_offsets(key, whole, replica_id=0)
        else:
            state[key] = ShardedObject(key, None, (1,), (0,), replica_id=0)
    patch_for_cpu()
    with world(Sizes(), 0, 1, folder.with_name("rendezvous")):
        dist_checkpointing.save(state, str(folder))


if __name__ == "__main__":
    _save(Model(**json.loads(sys.argv[1])), Path(sys.argv[2]))
