"""The folders in which the console blocks of the pages are run: real checkpoints, small."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support import megatron


@dataclass(frozen=True)
class Cases:
    """What real trainers saved: FSDP's by name, and the folder of megatron-core's."""

    fsdp: Mapping[str, Path]
    megatron: Path

    def copy(self, name: str, to: Path, part: str = "actor") -> Path:
        """A copy of a part of an FSDP case."""
        return Path(shutil.copytree(self.fsdp[name] / part, to))


Scene = Callable[[Path, Cases], object]


def _make_step(case: str) -> Scene:
    """Step 100 of a run."""
    return lambda folder, cases: cases.copy(case, folder / "global_step_100" / "actor")


def _make_run(folder: Path, cases: Cases) -> None:
    for step in (50, 100):
        for role in ("actor", "critic"):
            cases.copy("fsdp2_w2", folder / "qwen-grpo" / f"global_step_{step}" / role)


def _make_nodes(folder: Path, cases: Cases) -> None:
    for node, ranks in enumerate(((0, 1), (2, 3))):
        actor = cases.copy("fsdp2_tp_w4", folder / f"node{node}" / "actor")
        for rank in {0, 1, 2, 3} - set(ranks):
            (actor / f"model_world_size_4_rank_{rank}.pt").unlink()


def _make_mixed(folder: Path, cases: Cases) -> None:
    """A step of Megatron's, and a folder of torch.distributed.checkpoint without a config."""
    _make_megatron(folder, cases)
    _make_dcp(folder, cases)


def _make_megatron(folder: Path, cases: Cases) -> None:
    actor = folder / "global_step_100" / "actor"
    shutil.copytree(megatron.saved(cases.megatron, "qwen3_moe", "tp2_pp2"), actor / "dist_ckpt")
    config = actor / "huggingface"
    shutil.copytree(megatron.hf(cases.megatron, "qwen3_moe"), config)
    for weights in config.glob("*.safetensors*"):
        weights.unlink()


def _make_dcp(folder: Path, cases: Cases) -> None:
    cases.copy("fsdp2_tp_w4", folder / "step-100", "dcp")
    cases.copy("fsdp2_tp_w4", folder / "Qwen2.5-0.5B", "actor/huggingface")


def _make_model(folder: Path, cases: Cases) -> None:
    shutil.copytree(megatron.hf(cases.megatron, "llama"), folder / "model")


def _make_adapter(folder: Path, cases: Cases) -> None:
    cases.copy("lora_alone_w2", folder / "global_step_100" / "actor")
    cases.copy("fsdp2_w2", folder / "Qwen2.5-0.5B", "reference")


def _make_critic(folder: Path, cases: Cases) -> None:
    cases.copy("fsdp2_valuehead_w2", folder / "global_step_100" / "critic")


def _make_different(folder: Path, cases: Cases) -> None:
    """A reference with faults of five kinds, one of them in the shard of a rank."""
    actor = cases.copy("fsdp2_layers12_w2", folder / "global_step_100" / "actor")
    other = cases.copy("fsdp2_layers12_w2", folder / "other", "reference")
    path = other / "model.safetensors"
    state = load_file(path)
    gate, up = (f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("gate", "up"))
    state[gate], state[up] = state[up], state[gate]
    rounded = "model.layers.7.self_attn.o_proj.weight"
    state[rounded] = state[rounded].to(torch.bfloat16).float()
    state["model.layers.5.mlp.down_proj.weight"][2, 40] += 1e-6
    save_file(state, path, {"format": "pt"})
    _age(actor / "model_world_size_2_rank_1.pt", "model.layers.3.self_attn.k_proj.weight")


def _age(path: Path, name: str) -> None:
    """Change one rank's part of a tensor, in place: as if it were of another step."""
    from ckpt_tool.readers import open_checkpoint

    checkpoint = open_checkpoint(path.parent)
    (held,) = [each for each in checkpoint.entries[name].holdings if each.region.path == str(path)]
    count = held.box.volume
    with path.open("r+b") as file:
        file.seek(held.region.offset)
        values = torch.frombuffer(bytearray(file.read(4 * count)), dtype=torch.float32) + 0.01
        file.seek(held.region.offset)
        file.write(values.numpy().tobytes())


#: By the name that pages have them under.
SCENES: dict[str, Scene] = {
    "qwen3": _make_step("fsdp2_layers12_w2"),
    "run": _make_run,
    "nodes": _make_nodes,
    "mixed": _make_mixed,
    "dcp": _make_dcp,
    "model": _make_model,
    "lora": _make_step("lora_w2"),
    "adapter": _make_adapter,
    "critic": _make_critic,
    "different": _make_different,
}
