"""Which weights are cast, and to what."""

import pytest

from ckpt_tool.mapping.casting import cast_all, choose_dtype, hold_known, list_cast
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32, DType
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.saved import write_config

BIAS = "model.layers.0.mlp.gate.e_score_correction_bias"
GATE = "model.layers.0.mlp.gate.weight"
STATICS = "model.layers.0.mlp.moe_statics.e_score_correction_bias"
NAMES = [BIAS, f"{BIAS}_norm", GATE, STATICS, "layers.0.mlp.router.expert_bias"]


def of(*dtypes: DType) -> dict[str, LazyTensor]:
    return {f"w{at}": LazyTensor((3,), dtype, dtype, ()) for at, dtype in enumerate(dtypes)}


def dtypes_of(tensors: dict[str, LazyTensor]) -> list[str]:
    return [tensor.dtype.name for tensor in tensors.values()]


@pytest.mark.parametrize(
    ("model_type", "known"),
    [
        ("llama", []),
        ("deepseek_v3", [BIAS, STATICS, NAMES[-1]]),
        ("kimi_k2", [BIAS, STATICS]),
        ("ernie4_5_moe", [BIAS, STATICS, NAMES[-1]]),
        ("no_such_family", [BIAS, STATICS, NAMES[-1]]),
    ],
)
def test_what_is_float32_without_asking(model_type, known, tmp_path):
    config = write_config(tmp_path, model_type=model_type)
    assert hold_known(NAMES, config) == dict.fromkeys(known, FLOAT32)


def test_what_the_class_holds_otherwise_is_cast_to_that(tmp_path):
    tensors = of(FLOAT32, FLOAT32, FLOAT16, BFLOAT16, FLOAT16)
    held = dict.fromkeys(["w1", "w2", "w3"], FLOAT32)
    config = write_config(tmp_path, model_type="llama")
    found = cast_all(tensors, BFLOAT16, config, held)
    assert dtypes_of(found) == ["bfloat16", "float32", "float32", "bfloat16", "bfloat16"]
    assert found["w1"] is tensors["w1"]
    assert found["w3"] is tensors["w3"]


def test_integers_fp8_and_its_scales_are_not_cast():
    kept = of(*(BY_NAME[name] for name in ("int64", "bool", "float8_e4m3fn")))
    kept["a.weight_scale_inv"] = LazyTensor((3,), FLOAT32, FLOAT32, ())
    assert list_cast(kept, BFLOAT16, None) == []
    assert cast_all(kept, BFLOAT16, None) == kept


def test_nothing_is_cast_where_nothing_is_said(tmp_path):
    tensors = of(FLOAT32, BFLOAT16)
    silent = write_config(tmp_path, model_type="llama")
    assert choose_dtype("auto", silent) is None
    assert choose_dtype("keep", silent) is None
    assert list_cast(tensors, None, silent) == []
    assert cast_all(tensors, None, silent) == tensors
