"""Scales beside weights of a byte: those that are multiplied with, and those that cannot be."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig, load_config
from ckpt_tool.mapping.quantised import dequantise_weights
from ckpt_tool.tensors.dtypes import FLOAT32
from tests.support.backed import backed

WEIGHT = torch.full((4, 64), 2.0).to(torch.float8_e4m3fn)
PAIRS = torch.full((4, 16), 0x21, dtype=torch.uint8)
BY_ROW, BYTES = torch.full((4, 1), 3.0), torch.full((4, 1), 128, dtype=torch.uint8)
ONE = torch.tensor([7.0])


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    return load_config(tmp_path)


def dequantise(folder: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    lazy = {name: backed(folder / name, tensor) for name, tensor in tensors.items()}
    return {name: t.read() for name, t in dequantise_weights(lazy, config, FLOAT32).items()}


@pytest.mark.parametrize("other", ["input_scale", "k_scale", "input_global_scale"])
def test_scales_of_no_weight_are_left_out(config, tmp_path, other: str) -> None:
    stored = {"a.weight": WEIGHT, "a.weight_scale": BY_ROW, f"a.{other}": ONE}
    found = dequantise(tmp_path, config, stored)
    assert list(found) == ["a.weight"]
    assert found["a.weight"].eq(6).all()


@pytest.mark.parametrize("other", ["k_scale", "attn.v_scale", "qkv_proj.kv_scale", "prob_scale"])
def test_so_are_those_of_the_cache_beside_no_weight(config, tmp_path, other: str) -> None:
    stored = {"a.weight": WEIGHT, "a.weight_scale": BY_ROW, f"b.self_attn.{other}": ONE}
    assert list(dequantise(tmp_path, config, stored)) == ["a.weight"]


@pytest.mark.parametrize(
    "other", ["self_attn.k_proj.k_scale", "self_attn.k_scale", "v_proj.output_scale"]
)
def test_scales_of_the_cache_are_left_out_of_attention_that_is_not_quantised(
    config, tmp_path, other: str
) -> None:
    """As in Nemotron 3, whose cache is fp8 and whose keys and values are not."""
    kept = torch.arange(8.0).reshape(2, 4)
    stored = {"a.k_proj.weight": kept, f"a.{other}": ONE, "b.weight": WEIGHT, "b.weight_scale": ONE}
    found = dequantise(tmp_path, config, stored)
    assert set(found) == {"a.k_proj.weight", "b.weight"}
    assert found["a.k_proj.weight"].equal(kept)


def test_scales_of_experts_in_one_tensor_as_modelopt_calls_them(config, tmp_path) -> None:
    """Of Llama 4: one for all of them, and that of their inputs."""
    stored = {
        "experts.down_proj": torch.stack([WEIGHT, WEIGHT]),
        "experts.down_proj_weight_scale": torch.tensor(3.0),
        "experts.down_proj_input_scale": ONE,
    }
    found = dequantise(tmp_path, config, stored)
    assert list(found) == ["experts.down_proj"]
    assert found["experts.down_proj"].equal(torch.full((2, 4, 64), 6.0))


@pytest.mark.parametrize("said", [[2, 32], "2x32"])
def test_blocks_are_those_that_compressed_tensors_says(tmp_path, said: object) -> None:
    groups = {"group_0": {"weights": {"block_structure": said}}, "group_1": ["Linear"]}
    text = {"model_type": "qwen3", "quantization_config": {"config_groups": groups}}
    (tmp_path / "config.json").write_text(json.dumps(text))
    scales = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    stored = {"a.weight": WEIGHT, "a.weight_scale": scales}
    found = dequantise(tmp_path, load_config(tmp_path), stored)["a.weight"]
    assert found.equal(scales.repeat_interleave(2, 0).repeat_interleave(32, 1) * 2)


def test_blocks_of_several_sizes_are_refused(tmp_path) -> None:
    groups = {str(n): {"weights": {"block_structure": [n, n]}} for n in (2, 4)}
    text = {"model_type": "qwen3", "quantization_config": {"config_groups": groups}}
    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(MappingError, match="blocks of several sizes"):
        dequantise(tmp_path, load_config(tmp_path), {"a.weight": WEIGHT, "a.weight_scale": BY_ROW})


def test_scales_of_float16_are_exact(config, tmp_path) -> None:
    scales = torch.tensor([[0.1], [0.2], [0.3], [0.4]]).half()
    stored = {"a.weight": WEIGHT, "a.weight_scale": scales}
    found = dequantise(tmp_path, config, stored)["a.weight"]
    assert found.equal(scales.float().expand(4, 64) * 2)


@pytest.mark.parametrize(
    ("stored", "other"),
    [
        ({"weight": WEIGHT, "weight_scale_inv": ONE, "weight_scale": BY_ROW}, "weight_scale"),
        ({"weight": WEIGHT, "weight_scale": BY_ROW, "scale": ONE}, "scale"),
        ({"weight": WEIGHT, "weight_scale": BY_ROW, "weight_scale_2": ONE}, "weight_scale_2"),
        (
            {"weight_packed": PAIRS, "weight_scale": BYTES, "weight_global_scale": ONE},
            "weight_global_scale",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_scales_that_nothing_is_multiplied_with_are_refused(
    config, tmp_path, stored: dict[str, Tensor], other: str
) -> None:
    """Of two for one weight, one would be left out, and the weight be another."""
    with pytest.raises(MappingError) as refused:
        dequantise(tmp_path, config, {f"a.{name}": tensor for name, tensor in stored.items()})
    assert [each.split(":")[0] for each in refused.value.names] == [f"a.{other}"]
