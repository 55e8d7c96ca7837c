"""What looks like tensors of a model and is none."""

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.frameworks.foreign import set_aside_foreign
from ckpt_tool.mapping.hub.form import HubModel
from tests.support.saved import write_shapes

MODEL = {"model.norm.weight": (8,), "model.layers.0.self_attn.q_proj.weight": (8, 8)}


@pytest.fixture
def aside(tmp_path):
    """What is left, and what is dropped, of a model with tensors of more names."""

    def run(*names: str) -> HubModel:
        shapes = MODEL | dict.fromkeys(names, (2,))
        tensors = write_shapes(tmp_path / "x.safetensors", shapes)
        return set_aside_foreign(HubModel(dict(tensors)))

    return run


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "rotary_emb.inv_freq",
        "transformer.rotary_pos_emb.inv_freq",
        "model.layers.0.self_attn.q_proj._extra_state",
        "_extra_state",
        "model.layers.0.mlp.up_proj.weight_quantizer._amax",
    ],
)
def test_what_is_computed_is_left_out_and_said(aside, name):
    found = aside(name)
    assert found.tensors.keys() == MODEL.keys()
    assert list(found.dropped) == [name]


def test_those_of_many_layers_are_one_line(aside):
    names = [f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(3)]
    found = aside(*names, "a._extra_state")
    assert sorted(found.dropped) == ["*.inv_freq (3)", "a._extra_state"]


@pytest.mark.parametrize(
    "name",
    ["inv_freq", "pos.inv_freq", "rotary_emb.inv_freq.weight", "extra_state", "a.b_extra_state"],
)
def test_other_names_are_kept(aside, name):
    assert aside(name).tensors.keys() == {*MODEL, name}


@pytest.mark.parametrize(
    "name",
    [
        "_flat_param",
        "flat_param_0",
        "_fsdp_wrapped_module._flat_param",
        "model.layers.0._fsdp_wrapped_module.flat_param",
        "layers.0.flat_params",
    ],
)
def test_flat_parameters_are_refused_by_name(aside, name):
    with pytest.raises(MappingError, match="flat parameters of FSDP1") as refused:
        aside(name)
    assert list(refused.value.names) == [name]


@pytest.mark.parametrize(
    "end",
    [
        "absmax", "quant_map", "nested_absmax", "quant_state.bitsandbytes__nf4",
        "quant_state.bitsandbytes__fp4", "SCB", "weight_format",
    ],
)  # fmt: skip
def test_what_bitsandbytes_has_packed_is_refused_by_name(aside, end):
    name = f"model.layers.0.mlp.up_proj.weight.{end}"
    with pytest.raises(MappingError, match="bitsandbytes") as refused:
        aside(name)
    assert list(refused.value.names) == [name]
    assert "`lora.base=MODEL`" in refused.value.hint
