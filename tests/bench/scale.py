"""Checkpoints of very large models, to plan on: real files of torch without their numbers.

Each rank file is what `torch.save` writes of real DTensors inside `skip_data()`: pickle, directory
and headers are there, the elements are holes. Only the device mesh, which is read, is filled in.
A terabyte takes some gigabytes of disk: a page for every record. Run as a program, this module is
one process that writes a rank; importing it imports no torch.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Protocol

Shape = tuple[int, ...]

_LOCAL_HEADER = 30


class Shaped(Protocol):
    """Has tensors."""

    def shapes(self) -> Iterable[tuple[str, Shape]]:
        """Name and shape of each."""


@dataclass(frozen=True)
class Model:
    """The sizes of a model of Llama's or, with ``experts``, of Qwen3-MoE's kind."""

    layers: int
    hidden: int
    heads: int
    groups: int
    ffn: int
    vocabulary: int
    head_dim: int = 128
    experts: int = 0
    fused: bool = False

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Name and shape of every tensor: experts one by one, or ``fused`` in two tensors."""
        query, key = self.heads * self.head_dim, self.groups * self.head_dim
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            yield f"{prefix}self_attn.q_proj.weight", (query, self.hidden)
            yield f"{prefix}self_attn.k_proj.weight", (key, self.hidden)
            yield f"{prefix}self_attn.v_proj.weight", (key, self.hidden)
            yield f"{prefix}self_attn.o_proj.weight", (self.hidden, query)
            if self.experts:
                yield f"{prefix}self_attn.q_norm.weight", (self.head_dim,)
                yield f"{prefix}self_attn.k_norm.weight", (self.head_dim,)
                yield f"{prefix}mlp.gate.weight", (self.experts, self.hidden)
            yield from self._feed_forward(f"{prefix}mlp.")
            yield f"{prefix}input_layernorm.weight", (self.hidden,)
            yield f"{prefix}post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def _feed_forward(self, prefix: str) -> Iterator[tuple[str, Shape]]:
        if self.fused:
            yield f"{prefix}experts.gate_up_proj", (self.experts, 2 * self.ffn, self.hidden)
            yield f"{prefix}experts.down_proj", (self.experts, self.hidden, self.ffn)
            return
        stems = [f"{prefix}experts.{n}." for n in range(self.experts)] or [prefix]
        for stem in stems:
            yield f"{stem}gate_proj.weight", (self.ffn, self.hidden)
            yield f"{stem}up_proj.weight", (self.ffn, self.hidden)
            yield f"{stem}down_proj.weight", (self.hidden, self.ffn)

    def config(self) -> dict[str, object]:
        """Its config.json."""
        kind = (
            ("qwen3_moe", "Qwen3MoeForCausalLM") if self.experts else ("llama", "LlamaForCausalLM")
        )
        found: dict[str, object] = {
            "architectures": [kind[1]],
            "model_type": kind[0],
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        if self.experts:
            found |= {
                "num_experts": self.experts,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": self.ffn,
            }
        return found


#: name -> the model, and how many ranks it is on.
MODELS = {
    "30B-A3B": (Model(48, 2048, 32, 4, 768, 151936, experts=128), 16),
    "235B-A22B": (Model(94, 4096, 64, 4, 1536, 151936, experts=128), 64),
    "dense 70B": (Model(80, 8192, 64, 8, 28672, 128256), 64),
    "671B fused": (Model(61, 7168, 128, 128, 2048, 129280, experts=256, fused=True), 256),
}


def generate(folder: Path, name: str, jobs: int = 2) -> int:
    """Write a checkpoint of MODELS; the bytes of all tensors. Ranks are written ``jobs`` at a time.

    subprocess.CalledProcessError where a rank fails.
    """
    model, world = MODELS[name]
    (folder / "huggingface").mkdir(parents=True)
    (folder / "huggingface" / "config.json").write_text(json.dumps(model.config(), indent=2))
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world}))
    spec = json.dumps(asdict(model))
    shares = [range(first, world, jobs) for first in range(jobs)]
    command = [sys.executable, "-m", __name__, spec, str(world), str(folder)]
    running = [subprocess.Popen([*command, *map(str, share)]) for share in shares if share]
    for process in running:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    return 2 * sum(prod(shape) for _, shape in model.shapes())


def write_ranks(model: Shaped, world: int, folder: Path, ranks: list[int]) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.serialization.set_crc32_options(False)
    for rank in ranks:
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
        state = {}
        for name, shape in model.shapes():
            step = -(-shape[0] // world)
            rows = max(0, min(step, shape[0] - rank * step))
            local = torch.empty(rows, *shape[1:], dtype=torch.bfloat16)
            stride = torch.empty(shape, device="meta").stride()
            whole = {"shape": torch.Size(shape), "stride": stride}
            state[name] = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, **whole)
        path = folder / f"model_world_size_{world}_rank_{rank}.pt"
        with torch.serialization.skip_data():
            torch.save(state, path)
        _fill_mesh(path, world)
        dist.destroy_process_group()


def _fill_mesh(path: Path, world: int) -> None:
    """Put the ranks' numbers where the mesh has them: the storage after the first tensor's."""
    with zipfile.ZipFile(path) as archive:
        info = next(each for each in archive.infolist() if each.filename.endswith("/data/1"))
    width = info.file_size // world
    with path.open("r+b") as file:
        header = os.pread(file.fileno(), _LOCAL_HEADER, info.header_offset)
        name, extra = struct.unpack_from("<2H", header, 26)
        numbers = b"".join(rank.to_bytes(width, "little") for rank in range(world))
        os.pwrite(file.fileno(), numbers, info.header_offset + _LOCAL_HEADER + name + extra)


if __name__ == "__main__":
    write_ranks(
        Model(**json.loads(sys.argv[1])),
        int(sys.argv[2]),
        Path(sys.argv[3]),
        [*map(int, sys.argv[4:])],
    )
