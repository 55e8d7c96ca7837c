"""Scales beside weights of a byte: those that are multiplied with, and those that cannot be."""

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
