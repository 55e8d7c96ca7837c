"""Models whose weights are quantised as they are on the Hub. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tests.bench.family_models import gpt_oss_model
from tests.bench.generate_hf import Model, dense_model, moe_model
from tests.bench.values import (
    FP8_SCALES,
    INT4_SCALES,
    INT4_SHAPE,
    INT4_WORDS,
    MX_BLOCKS,
    MX_SCALES,
    Shapes,
)

#: Rows and columns that share a scale of fp8.
_BLOCK = 128
#: Numbers of four bits that have a scale in common, and those in a word of INT4.
_GROUP, _WORD = 32, 8


def fp8_model(size: int) -> Model:
    """The same as :func:`dense_model`, its linear layers in fp8 with scales by blocks.

    ``size``: of the model that it was made of, in bytes.
    """
    said = {"quant_method": "fp8", "weight_block_size": [_BLOCK, _BLOCK]}
    return _quantise(dense_model(size), "_proj.weight", _scale_blocks, said)


def mxfp4_model(size: int) -> Model:
    """The same as :func:`gpt_oss_model`, its experts in MXFP4, turned. ``size``: as of fp8."""
    kept = [f"model.layers.*.{part}" for part in ("self_attn", "mlp.router")]
    kept += ["model.embed_tokens", "lm_head"]
    said = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    ends = "experts.gate_up_proj", "experts.down_proj"
    return _quantise(gpt_oss_model(size), ends, _pack_mxfp4, said)


def int4_model(size: int) -> Model:
    """The same as :func:`moe_model`, its experts as Kimi-K2-Thinking's are. ``size``: as of fp8."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": _GROUP}
    group = {"weights": weights | {"strategy": "group"}, "targets": ["Linear"]}
    said = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp[.]gate$"],
    }
    model, ends = moe_model(size), ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    return _quantise(model, ends, _pack_int4, said)


def _quantise(
    model: Model,
    ends: str | tuple[str, ...],
    pack: Callable[[str, tuple[int, ...]], Shapes],
    said: Mapping[str, object],
) -> Model:
    """The model with what ``pack`` makes of the weights whose names end so."""
    shapes: Shapes = {}
    for name, shape in model.shapes.items():
        shapes |= pack(name, shape) if name.endswith(ends) else {name: shape}
    return replace(model, shapes=shapes, config={**model.config, "quantization_config": said})


def _scale_blocks(name: str, shape: tuple[int, ...]) -> Shapes:
    rows, columns = shape
    return {name: shape, name + FP8_SCALES: (-(-rows // _BLOCK), -(-columns // _BLOCK))}


def _pack_mxfp4(name: str, shape: tuple[int, ...]) -> Shapes:
    experts, taken, given = shape
    groups = (experts, given, taken // _GROUP)
    return {name + MX_BLOCKS: (*groups, _GROUP // 2), name + MX_SCALES: groups}


def _pack_int4(name: str, shape: tuple[int, ...]) -> Shapes:
    rows, columns = shape
    return {
        name + INT4_WORDS: (rows, columns // _WORD),
        name + INT4_SCALES: (rows, columns // _GROUP),
        name + INT4_SHAPE: (2,),
    }
