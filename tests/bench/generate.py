"""Checkpoints to measure on, as verl writes them with FSDP2.

The rank files hold real DTensors: each is written by a process of its own, which is that rank of
a world of eight as far as torch.distributed's "fake" backend is concerned. One rank at a time,
so that memory is bounded by an eighth of the checkpoint. Run as a program, this module is that
process; importing it imports no torch.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORLD_SIZE = 8

# Qwen2.5-1.5B
_HIDDEN, _INTERMEDIATE, _VOCABULARY = 1536, 8960, 151936
_HEADS, _KV_HEADS, _HEAD_DIM = 12, 2, 128

#: Random bytes that every tensor is cut from; drawing each value would take minutes.
_RANDOM_BYTES = 64 << 20


@dataclass(frozen=True)
class Spec:
    """What a checkpoint holds. ``matrix_dim``: the dimension along which matrices are cut.

    ``lora_rank``: of adapters on every linear layer, 0 for none.
    """

    dtype: str
    matrix_dim: int
    num_layers: int
    vocabulary: int
    lora_rank: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model, in its order."""
        table = (self.vocabulary, _HIDDEN)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
        for layer in range(self.num_layers):
            for name, shape in _LAYER.items():
                shapes[f"model.layers.{layer}.{name}"] = shape
        return shapes | {"model.norm.weight": (_HIDDEN,), "lm_head.weight": table}

    def saved(self) -> dict[str, tuple[int, ...]]:
        """The same of what is in the files: with adapters, by the names that peft gives them."""
        if not self.lora_rank:
            return self.shapes()
        saved = {}
        for name, shape in self.shapes().items():
            module, _, kind = f"base_model.model.{name}".rpartition(".")
            if "_proj" not in module:
                saved[f"{module}.{kind}"] = shape
                continue
            saved[f"{module}.base_layer.{kind}"] = shape
            if kind == "weight":
                saved[f"{module}.lora_A.default.weight"] = (self.lora_rank, shape[1])
                saved[f"{module}.lora_B.default.weight"] = (shape[0], self.lora_rank)
        return saved

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return _ITEMSIZE[self.dtype] * sum(map(prod, self.shapes().values()))


_ITEMSIZE = {"bfloat16": 2, "float32": 4}
_KV_WIDTH = _KV_HEADS * _HEAD_DIM
_LAYER: dict[str, tuple[int, ...]] = {
    "input_layernorm.weight": (_HIDDEN,),
    "self_attn.q_proj.weight": (_HEADS * _HEAD_DIM, _HIDDEN),
    "self_attn.q_proj.bias": (_HEADS * _HEAD_DIM,),
    "self_attn.k_proj.weight": (_KV_WIDTH, _HIDDEN),
    "self_attn.k_proj.bias": (_KV_WIDTH,),
    "self_attn.v_proj.weight": (_KV_WIDTH, _HIDDEN),
    "self_attn.v_proj.bias": (_KV_WIDTH,),
    "self_attn.o_proj.weight": (_HIDDEN, _HEADS * _HEAD_DIM),
    "post_attention_layernorm.weight": (_HIDDEN,),
    "mlp.gate_proj.weight": (_INTERMEDIATE, _HIDDEN),
    "mlp.up_proj.weight": (_INTERMEDIATE, _HIDDEN),
    "mlp.down_proj.weight": (_HIDDEN, _INTERMEDIATE),
}


def spec_of_size(size: int, dtype: str, matrix_dim: int) -> Spec:
    """The model nearest to ``size`` bytes; at least one layer.

    The vocabulary is halved where the embedding and the head would be more than half of it, so
    that small runs too are mostly layers.
    """
    vocabulary = _VOCABULARY
    while (
        vocabulary > _VOCABULARY >> 4 and Spec(dtype, matrix_dim, 0, vocabulary).nbytes > size / 2
    ):
        vocabulary //= 2
    empty, one = (Spec(dtype, matrix_dim, n, vocabulary).nbytes for n in (0, 1))
    return Spec(dtype, matrix_dim, max(1, round((size - empty) / (one - empty))), vocabulary)


def generate(folder: Path, spec: Spec) -> list[Path]:
    """Write the checkpoint that ``spec`` describes; returns its rank files.

    subprocess.CalledProcessError where a rank fails.
    """
    (folder / "huggingface").mkdir(parents=True)
    (folder / "huggingface" / "config.json").write_text(json.dumps(config_of(spec), indent=2))
    world = {"FSDP_version": 2, "world_size": WORLD_SIZE}
    (folder / "fsdp_config.json").write_text(json.dumps(world))
    if spec.lora_rank:
        meta = {"r": spec.lora_rank, "lora_alpha": 2 * spec.lora_rank, "task_type": "CAUSAL_LM"}
        (folder / "lora_train_meta.json").write_text(json.dumps(meta))
    files = []
    for rank in range(WORLD_SIZE):
        files.append(folder / f"model_world_size_{WORLD_SIZE}_rank_{rank}.pt")
        arguments = [json.dumps(asdict(spec)), str(rank), str(files[-1])]
        subprocess.run([sys.executable, "-m", __name__, *arguments], check=True)
    return files


def config_of(spec: Spec) -> dict[str, object]:
    """Its config.json."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": 32768,
        "max_window_layers": spec.num_layers,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _write_rank(spec: Spec, rank: int, path: str) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=WORLD_SIZE, store=FakeStore())
    mesh = init_device_mesh("cpu", (WORLD_SIZE,), mesh_dim_names=("fsdp",))
    source = random.Random(rank)
    dtype = getattr(torch, spec.dtype)
    torch.manual_seed(rank)
    values = (torch.randn(_RANDOM_BYTES // dtype.itemsize) * 0.02).to(dtype)
    state = {}
    for name, shape in spec.saved().items():
        dim = spec.matrix_dim if len(shape) == 2 else 0
        local = _cut(values, _local_shape(shape, dim, rank), source)
        if "norm" in name:
            local = local + 1  # as in trained models: the tool measures rounding errors
        state[name] = DTensor.from_local(
            local,
            mesh,
            [Shard(dim)],
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )
    torch.save(state, path)
    dist.destroy_process_group()


def _local_shape(shape: tuple[int, ...], dim: int, rank: int) -> tuple[int, ...]:
    """The rank's part, cut as torch.chunk cuts."""
    step = -(-shape[dim] // WORLD_SIZE)
    length = max(0, min(step, shape[dim] - rank * step))
    return (*shape[:dim], length, *shape[dim + 1 :])


def _cut(values: torch.Tensor, shape: tuple[int, ...], source: random.Random) -> torch.Tensor:
    """A tensor of its own, filled with ``values`` from a random position on, over and over."""
    local = values.new_empty(prod(shape))
    done, at = 0, source.randrange(len(values))
    while done < len(local):
        piece = values[at : at + len(local) - done]
        local[done : done + len(piece)] = piece
        done, at = done + len(piece), 0
    return local.view(shape)


if __name__ == "__main__":
    _write_rank(Spec(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
