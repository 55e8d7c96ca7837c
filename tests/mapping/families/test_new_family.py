"""A family is one row: with it, and nothing else, an invented one is merged and converted."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_fsdp,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.families.family import Family
from ckpt_tool.mapping.families.hub_rules import Rename
from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED
from ckpt_tool.mapping.families.table import FAMILIES
from tests.support.merging import assert_same, load_folder, values, write_rank

ROW = Family(
    "InventedForCausalLM",
    hub=(Rename(".feed_forward.", ".mlp."), Rename("final.", "model.norm.", start=True)),
    tied=True,
    float32=r"^model\.norm\.weight$",
    megatron=MegatronRows(GROUPED, DENSE, flags={"qk_norm": True}),
)
CONFIG = {
    "model_type": "invented",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "intermediate_size": 6,
    "vocab_size": 16,
    "torch_dtype": "bfloat16",
}
LAYER = {
    "input_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.k_proj.weight": (4, 8),
    "self_attn.v_proj.weight": (4, 8),
    "self_attn.q_norm.weight": (2,),
    "self_attn.k_norm.weight": (2,),
    "self_attn.o_proj.weight": (8, 8),
    "post_attention_layernorm.weight": (8,),
    "feed_forward.gate_proj.weight": (6, 8),
    "feed_forward.up_proj.weight": (6, 8),
    "feed_forward.down_proj.weight": (8, 6),
}
NOT_HELD = "not held against the architecture of its config"
UNSYNCED = WriteOptions(fsync=False)


@pytest.fixture
def row(monkeypatch):
    monkeypatch.setitem(FAMILIES, "invented", ROW)


def in_memory() -> dict[str, torch.Tensor]:
    """A state dict as the model has it, its head a copy of the embedding; all else is distinct."""
    shapes = {"model.embed_tokens.weight": (16, 8), "final.weight": (8,)}
    for number in range(2):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in LAYER.items()}
    state, start = {}, 1
    for name, shape in shapes.items():
        state[name] = values(*shape, start=start)
        start += state[name].numel()
    return state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}


def on_hub() -> dict[str, torch.Tensor]:
    """What is to be on the Hub, by hand."""
    expected = {}
    for name, tensor in in_memory().items():
        new = name.replace(".feed_forward.", ".mlp.").replace("final.", "model.norm.")
        expected[new] = tensor if name == "final.weight" else tensor.bfloat16()
    del expected["lm_head.weight"]
    return expected


def merged(tmp_path: Path) -> Path:
    source = write_rank(tmp_path / "ranks", in_memory(), CONFIG)
    result = merge_fsdp([source], tmp_path / "hub", MergeOptions(write=UNSYNCED))
    assert result.dropped.keys() == {"lm_head.weight"}
    assert [said.partition(":")[0] for said in result.warnings] == [NOT_HELD]
    return tmp_path / "hub"


def stack_layers(name: str) -> torch.Tensor:
    return torch.stack([on_hub()[f"model.layers.{number}.{name}.weight"] for number in (0, 1)])


@pytest.mark.usefixtures("row")
def test_ranks_become_a_model_on_the_hub(tmp_path):
    out = merged(tmp_path)
    assert_same(load_folder(out), on_hub())
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["InventedForCausalLM"]
    assert "tie_word_embeddings" not in config
    result = verify_checkpoint(tmp_path / "ranks", out)
    assert {found.kind for found in result.mismatched} == {"dtype"}  # nothing but the cast
    assert "model.norm.weight" not in {found.name for found in result.mismatched}


@pytest.mark.usefixtures("row")
def test_the_model_becomes_megatrons_and_comes_back(tmp_path):
    hub = merged(tmp_path)
    convert_to_mcore(hub, tmp_path / "mcore", ToMcoreOptions(write=UNSYNCED))
    found = {name: tensor.read() for name, tensor in open_checkpoint(tmp_path / "mcore").items()}
    query, key, value = (stack_layers(f"self_attn.{part}_proj") for part in "qkv")
    halves = [part for group in (0, 1) for part in (
        query[:, 4 * group : 4 * group + 4], key[:, 2 * group : 2 * group + 2],
        value[:, 2 * group : 2 * group + 2])]  # fmt: skip
    gate, up = (stack_layers(f"mlp.{part}_proj") for part in ("gate", "up"))
    layers = "decoder.layers."
    assert_same(
        found,
        {
            "embedding.word_embeddings.weight": on_hub()["model.embed_tokens.weight"],
            "decoder.final_layernorm.weight": on_hub()["model.norm.weight"],
            f"{layers}self_attention.linear_qkv.layer_norm_weight": stack_layers("input_layernorm"),
            f"{layers}self_attention.linear_qkv.weight": torch.cat(halves, 1),
            f"{layers}self_attention.q_layernorm.weight": stack_layers("self_attn.q_norm"),
            f"{layers}self_attention.k_layernorm.weight": stack_layers("self_attn.k_norm"),
            f"{layers}self_attention.linear_proj.weight": stack_layers("self_attn.o_proj"),
            f"{layers}mlp.linear_fc1.layer_norm_weight": stack_layers("post_attention_layernorm"),
            f"{layers}mlp.linear_fc1.weight": torch.cat([gate, up], 1),
            f"{layers}mlp.linear_fc2.weight": stack_layers("mlp.down_proj"),
        },
    )
    options = MergeOptions(config=hub, write=UNSYNCED)
    merge_megatron(tmp_path / "mcore", tmp_path / "back", options)
    assert_same(load_folder(tmp_path / "back"), on_hub())
    assert verify_checkpoint(tmp_path / "mcore", hub).equal


def test_without_the_row_nothing_of_it_is_known(tmp_path):
    source = write_rank(tmp_path / "ranks", in_memory(), CONFIG)
    result = merge_fsdp([source], tmp_path / "hub", MergeOptions(write=UNSYNCED))
    assert "invented is not known" in result.warnings[0]
    assert load_folder(tmp_path / "hub").keys() == in_memory().keys()
    with pytest.raises(MappingError, match="'invented' has no table of megatron-core names"):
        convert_to_mcore(tmp_path / "hub", tmp_path / "mcore")
