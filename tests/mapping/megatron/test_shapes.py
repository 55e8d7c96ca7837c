"""Every tensor of every family has the shape that its row says, by the config."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from ckpt_tool import convert_to_mcore
from ckpt_tool.common.errors import CkptError, MappingError
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.megatron.rules import make_rules
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from tests.real.megatron_models import write_model
from tests.support.megatron import UNKNOWN

_SHAPED = ["llama", "qwen2_moe", "mixtral", "deepseek_v3_mtp", "moonlight", "ernie4_5_moe", "olmoe"]
#: The one that depends on nothing else in the config.
UNSAID = {"patch_embed.proj.weight"}


@pytest.mark.slow
@pytest.mark.parametrize("name", _SHAPED)
def test_rows_say_the_shapes_of_real_models(name, tmp_path):
    if name in UNKNOWN:
        pytest.skip(UNKNOWN[name])
    folder = write_model(name, tmp_path)
    shapes = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    said = {
        key: shape
        for binding in make_rules(load_config(folder), shapes).bindings
        for key, shape in binding.expected()
    }
    assert None not in {size for shape in said.values() for size in shape}
    assert said == {key: shapes[key] for key in said}
    left = set(shapes) - set(said)
    assert all(key.endswith((".embed_tokens.weight", ".shared_head.head.weight")) for key in left)


def test_every_row_says_a_shape():
    rows = {
        row
        for family in FAMILIES.values()
        if family.megatron is not None
        for part in (
            family.megatron.attention,
            family.megatron.dense,
            family.megatron.moe,
            family.megatron.mtp.rows,
        )
        for row in part
    }
    assert all(row.shape for row in rows)
    for family in ("qwen2_5_vl", "qwen3_vl"):
        vision = FAMILIES[family].megatron.around.vision
        every = vision.rows + vision.block + vision.merger
        assert {row.hf for row in every if not row.shape} == UNSAID


def test_a_bias_of_attention_alone_is_refused(tmp_path):
    folder = write_model("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text()) | {"attention_bias": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MappingError, match="add_bias_linear"):
        convert_to_mcore(folder, tmp_path / "out")


@pytest.mark.parametrize("layers", [10**4, 10**12])
def test_more_layers_than_tensors_are_refused(layers, tmp_path):
    folder = write_model("mixtral", tmp_path / "mixtral")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CkptError, match=f"num_hidden_layers is {layers}"):
        convert_to_mcore(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_local_experts", 2**31, "num_local_experts is 2147483648, expected a size up to"),
        (
            "num_local_experts",
            900_000,
            "1,800,000 experts in all, but the tensors have no more than",
        ),
        ("num_hidden_layers", 90_000, "90,000 layers in all, but the tensors have no more than"),
    ],
)
def test_work_is_bounded_by_what_the_checkpoint_holds(key, value, said, tmp_path):
    fixture = Path(__file__).parents[2] / "fixtures" / "mcore0.16_moe"
    config = json.loads((fixture / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CkptError, match=said):
        make_plan(fixture / "checkpoint", "megatron", MergeOptions(config=tmp_path))


def test_many_layers_of_many_experts_are_refused(tmp_path):
    folder = write_model("mixtral", tmp_path / "mixtral")
    more = {"num_hidden_layers": 20, "num_local_experts": 20}
    config = json.loads((folder / "config.json").read_text()) | more
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MappingError, match="400 experts in all"):
        convert_to_mcore(folder, tmp_path / "out")
