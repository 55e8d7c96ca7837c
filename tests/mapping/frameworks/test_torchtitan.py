"""torchtitan's names: which belong together, and what is no name of a family."""

import json
import time
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.families.torchtitan_rows import TOP
from ckpt_tool.mapping.frameworks.torchtitan import from_torchtitan, is_torchtitan, spell
from ckpt_tool.mapping.frameworks.torchtitan_ops import make_op
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor
from tests.real.write_torchtitan_fixtures import FIXTURES
from tests.support.backed import backed, distinct, same

#: Names of 0.2, of 0.3, and as the rows have them.
VERSIONS = (
    ("output.weight", "lm_head.weight", "lm_head.weight"),
    ("layers.3.attention.wq.bias", "layers.3.attention.qkv_linear.wq.bias", "attention.wq.bias"),
    ("layers.3.moe.experts.w1", "layers.3.moe.routed_experts.inner_experts.w1_EFD", "experts.w1"),
    ("layers.3.moe.experts.w2", "layers.3.moe.experts.w2_EDF", "moe.experts.w2"),
    ("layers.3.moe.expert_bias", "layers.3.moe.expert_bias_E", "moe.expert_bias"),
    (
        "layers.3.moe.experts.mlp1_bias",
        "layers.3.moe.routed_experts.inner_experts.mlp1_bias_EG",
        "moe.experts.mlp1_bias",
    ),
    ("layers.3.feed_forward.w1.weight",) * 3,
)
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2}


def config_of(model_type: str, **more) -> ModelConfig:
    return ModelConfig(Path("/nowhere"), {"model_type": model_type, **SIZES, **more}, {})


def lazy(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    made = {"tok_embeddings.weight": (6, 8)} | shapes
    return {
        name: backed(tmp_path / str(number), distinct(shape))
        for number, (name, shape) in enumerate(made.items())
    }


def convert(tmp_path: Path, model_type: str, shapes: dict[str, tuple[int, ...]], **more):
    return from_torchtitan(HubModel(lazy(tmp_path, shapes), config_of(model_type, **more)))


def faults_of(*arguments, **more) -> tuple[str, ...]:
    with pytest.raises(MappingError) as refused:
        convert(*arguments, **more)
    return tuple(refused.value.names)


@pytest.mark.parametrize(("old", "new", "row"), VERSIONS)
def test_versions_are_spelled_alike(old, new, row):
    assert spell(old) == spell(new)
    assert spell(old).endswith(row)
    assert spell(spell(old)) == spell(old)


@pytest.mark.parametrize("model_type", [name for name, row in FAMILIES.items() if row.torchtitan])
def test_rows_are_well_formed(model_type):
    rows = FAMILIES[model_type].torchtitan
    every = (*TOP, *rows.layer, *rows.mtp)
    assert len({row.titan for row in every}) == len(every)
    kept = [row.hf for row in every if row.hf and "wqkv" not in row.titan]
    assert len(set(kept)) == len(kept)
    for row in every:
        assert spell(f"layers.0.{row.titan}") == f"layers.0.{row.titan}"
        assert row.titan.endswith("*") is row.hf.endswith("*")
        assert ("{e}" in row.hf) is (row.op == "experts")
        assert make_op(row.op, config_of(model_type))


def test_what_is_named_by_torchtitan():
    assert is_torchtitan({"tok_embeddings.weight": 1})
    assert not is_torchtitan({"model.embed_tokens.weight": 1})


def test_llama4_with_a_tower_is_named_as_its_adapter_names_it(tmp_path):
    from safetensors.torch import load_file

    folder = FIXTURES / "torchtitan0.2_llama4"
    state = load_file(folder / "titan.safetensors")
    tensors = {name: backed(tmp_path / name, tensor) for name, tensor in state.items()}
    text = json.loads((folder / "config.json").read_text())
    config = ModelConfig(folder, {"model_type": "llama4", "text_config": text}, {})
    found = from_torchtitan(HubModel(tensors, config)).tensors
    adapted = load_file(folder / "reference.safetensors")
    dense = {name for name in found if ".layers.0.feed_forward." in name}  # it leaves them out
    assert found.keys() - dense == adapted.keys()
    assert len(dense) == 3
    assert all(same(found[name].read(), tensor) for name, tensor in adapted.items())


def test_two_spellings_of_one_tensor(tmp_path):
    names = faults_of(tmp_path, "qwen3", {"output.weight": (6, 8), "lm_head.weight": (6, 8)})
    assert names == ("lm_head.weight: also output.weight",)


def test_one_layer_for_three_beside_the_three(tmp_path):
    at = "layers.0.attention.qkv_linear."
    shapes = {f"{at}wqkv.weight": (32, 8), f"{at}wk.weight": (8, 8)}
    names = faults_of(tmp_path, "qwen3", shapes)
    made = "model.layers.0.self_attn.k_proj.weight is made of other tensors too"
    assert names == (f"{at}wk.weight: {made}",)


@pytest.mark.parametrize("rows", [31, 33, 16, 0])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_one_layer_for_three_of_other_rows(tmp_path, model_type, rows):
    name = "layers.0.attention.wqkv.weight"
    assert faults_of(tmp_path, model_type, {name: (rows, 8)})[0].startswith(f"{name}: [{rows}, 8]")


def test_heads_that_do_not_fit_together(tmp_path):
    name = "layers.0.attention.wqkv.weight"
    fault = faults_of(tmp_path, "qwen3", {name: (40, 8)}, num_key_value_heads=3)
    assert fault == (f"{name}: [40, 8] for 4 heads, 3 key and value heads, head_dim 4",)


def test_what_goes_together_is_there_together(tmp_path):
    shapes = {"layers.0.moe.experts.w1": (2, 3, 4), "layers.1.moe.experts.w3": (2, 3, 4)}
    assert faults_of(tmp_path, "llama4_text", shapes) == (
        "layers.0.moe.experts.w1: without the moe.experts.w3 of its layer",
        "layers.1.moe.experts.w3: without the moe.experts.w1 of its layer",
    )


def test_every_name_that_no_row_has_is_listed(tmp_path):
    unknown = (
        "layers.0.moe.experts.w1.weight",
        "layers.0.attention.sinks",
        "layers.0.attention.wq.scale",
        "layers.x.attention.wq.weight",
        "layers.\u0661.attention.wq.weight",
        "layers.12345678901234567890.attention.wq.weight",
        "mtp_layers.0.enorm.weight",
        "mtp_layers.0.attention.wq.weight",
        "output",
        "",
    )
    assert faults_of(tmp_path, "qwen3", dict.fromkeys(unknown, (2, 3, 4))) == unknown


def test_a_layer_ahead_comes_after_the_others(tmp_path):
    shapes = {"mtp_layers.0.eh_proj.weight": (8, 16), "mtp_layers.0.mtp_norm.weight": (8,)}
    model = convert(tmp_path, "deepseek_v3", shapes | {"lm_head.weight": (6, 8)})
    assert {"model.layers.2.eh_proj.weight", "model.layers.2.shared_head.norm.weight"} < set(
        model.tensors
    )
    assert model.repeats == {
        "model.layers.2.embed_tokens.weight": model.tensors["model.embed_tokens.weight"],
        "model.layers.2.shared_head.head.weight": model.tensors["lm_head.weight"],
    }
    clash = {"layers.2.attention_norm.weight": (8,), "mtp_layers.0.attention_norm.weight": (8,)}
    assert "also layers.2" in faults_of(tmp_path, "deepseek_v3", clash)[0]


def test_a_bias_that_the_class_has_not_is_left_out_and_said(tmp_path):
    model = convert(tmp_path, "qwen3_moe", {"layers.0.moe.expert_bias": (4,)}, num_experts=4)
    assert model.tensors.keys() == {"model.embed_tokens.weight"}
    ((name, reason),) = model.dropped.items()
    assert name == "layers.0.moe.expert_bias"
    assert "balances the load" in reason


def empty(*shape: int) -> LazyTensor:
    return LazyTensor(shape, FLOAT32, FLOAT32, ())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("layers.0.attention.wq.weight", empty(0, 8)),
        ("layers.0.attention.wq.weight", empty(2**32 - 2, 0)),
        ("layers.0.attention.wqkv.weight", empty(0, 8)),
        ("layers.0.attention.wq.weight", empty()),
        ("layers.0.attention.wqkv.weight", empty()),
    ],
)
def test_sizes_that_nothing_is_behind_cost_no_time(name, tensor):
    huge = {"num_attention_heads": 2**31 - 1, "num_key_value_heads": 2**31 - 1, "head_dim": 0}
    model = HubModel({name: tensor}, config_of("llama", **huge))
    start = time.perf_counter()
    with pytest.raises(MappingError) as refused:
        from_torchtitan(model)
    assert refused.value.names[0].startswith(f"{name}: {list(tensor.shape)}")
    assert time.perf_counter() - start < 1


def test_experts_that_nothing_is_behind_cost_no_time():
    name = "layers.0.moe.experts.w1"
    for count in (0, 2**30):
        config = config_of("qwen3_moe", num_experts=count)
        start = time.perf_counter()
        with pytest.raises(MappingError) as refused:
            from_torchtitan(HubModel({name: empty(2**30, 0, 8)}, config))
        assert refused.value.names[0].startswith(f"{name}: [{2**30}, 0, 8]")
        assert time.perf_counter() - start < 1


def test_values_stay_bit_for_bit(tmp_path):
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1.0] * 4).reshape(16, 1)
    tensors = {"layers.0.attention.wq.weight": backed(tmp_path / "w", odd)}
    found = from_torchtitan(HubModel(tensors, config_of("llama"))).tensors
    (tensor,) = found.values()
    expected = odd.reshape(4, 2, 2, 1).transpose(1, 2).reshape(16, 1)
    assert same(tensor.read(), expected)
