"""Adapters by ms-swift's names, and rows of a gate that lie rank by rank."""

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.swift import list_spellings, use_bridge_names
from ckpt_tool.tensors.lazy import cat, stack
from tests.support.megatron_models import config_of
from tests.support.saved import write_tensors

LAYER = "decoder.layers.1."
FIRST = f"{LAYER}mlp.linear_fc1"


def of_ranks(whole: torch.Tensor, ranks: int, folder):
    """Gate and other rows of one rank after the other, one block each."""
    gate, up = (half.chunk(ranks) for half in whole.chunk(2))
    blocks = {str(rank): torch.cat([gate[rank], up[rank]]) for rank in range(ranks)}
    found = write_tensors(folder / "ranks.safetensors", blocks)
    return cat([found[name] for name in blocks], 0)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("stacked", [False, True])
def test_rows_of_a_gate_are_put_together(ranks, stacked, tmp_path):
    whole = torch.arange(16.0).reshape(8, 2)
    left = of_ranks(whole, ranks, tmp_path)
    found = use_bridge_names(
        {f"{FIRST}.lora_B.default.weight": stack([left, left]) if stacked else left},
        config_of("llama"),
    )
    tensor = found[f"{FIRST}.adapter.linear_out.weight"].read()
    assert torch.equal(tensor, torch.stack([whole, whole]) if stacked else whole)


#: Of other layers, of experts, and of a family without a gate, rows are what they are.
PLAIN = {
    f"{LAYER}self_attention.linear_qkv.lora_B.default.weight": "llama",
    f"{FIRST}.lora_A.default.weight": "llama",
    f"{LAYER}mlp.experts.experts.linear_fc1.lora_B.default.weight": "qwen3_moe",
    f"{FIRST}.lora_B.default.weight": "nemotron",
}


@pytest.mark.parametrize(("name", "family"), PLAIN.items())
def test_other_rows_stay(name, family, tmp_path):
    tensor = of_ranks(torch.arange(16.0).reshape(8, 2), 2, tmp_path)
    found = use_bridge_names({name: tensor}, config_of(family))
    part = "in" if "lora_A" in name else "out"
    own = f"{name.partition('.lora_')[0]}.adapter.linear_{part}.weight"
    assert found == {own: tensor}


def test_names_of_others_are_not_touched(tmp_path):
    tensors = {f"{FIRST}.adapter.linear_out.weight": of_ranks(torch.ones(4, 2), 2, tmp_path)}
    assert use_bridge_names(tensors, config_of("llama")) is tensors


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["linear_qkv"], ["in_proj"]),
        (["linear_qkv", "in_proj"], ["in_proj"]),
        (["in_proj_ba"], ["in_proj_ba"]),
        (["in_proj_qkv", "in_proj_z"], ["norm"]),
        ([], []),
    ],
)
def test_whose_rows_a_base_has_to_have(modules, expected):
    names = [f"{LAYER}self_attention.{module}.lora_A.default.weight" for module in modules]
    assert list_spellings([*names, "decoder.final_layernorm.weight"]) == [
        f".self_attention.{name}.weight" for name in expected
    ]


REFUSED = {
    "two adapters": ("llama", ("default", "ref_adapter"), 8, "2 adapters in one checkpoint"),
    "odd rows": ("llama", ("default",), 6, "not those of ranks"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_known_order_is_refused(case, tmp_path):
    family, adapters, rows, said = REFUSED[case]
    path = tmp_path / "m.safetensors"
    parts = write_tensors(path, {"a": torch.ones(3, 2), "b": torch.ones(rows - 3, 2)})
    left = cat([parts["a"], parts["b"]], 0)
    found = {f"{FIRST}.lora_B.{adapter}.weight": left for adapter in adapters}
    if case == "odd rows":
        found = {name: left.narrow(0, 0, 5) for name in found}
    with pytest.raises(MappingError, match=said):
        use_bridge_names(found, config_of(family))
