"""``config.json`` says what the weights are, or is refused."""

import json
import re

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.truth import drop_quantisation, refuse_other_part, tell_truth
from tests.support.merging import TINY, values
from tests.support.saved import write_config, write_shapes, write_tensors

SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "lm_head.weight": (16, 8),
}


@pytest.fixture
def told(tmp_path):
    """The model of a config and shapes, with the truth told."""

    def run(shapes=SHAPES, **raw):
        tensors = write_shapes(tmp_path / "x.safetensors", shapes)
        return tell_truth(HubModel(dict(tensors), write_config(tmp_path, **(TINY | raw))))

    return run


def written(model):
    return json.loads(model.config.to_bytes())


def resized(rows, head=None, norm=8):
    return {
        "model.embed_tokens.weight": (rows, 8),
        "model.layers.0.input_layernorm.weight": (norm,),
        "lm_head.weight": (rows if head is None else head, 8),
    }


@pytest.mark.parametrize("rows", [15, 24])
def test_the_vocabulary_is_that_of_the_embedding(told, rows):
    found = told(resized(rows))
    assert written(found)["vocab_size"] == rows
    (said,) = found.warnings
    assert "was 16" in said
    assert f"is {rows} now" in said


def test_it_is_where_the_language_model_is(told):
    text = {key: TINY[key] for key in ("vocab_size", "hidden_size")}
    found = told(resized(24), text_config=text, vocab_size=None)
    assert written(found)["text_config"] == text | {"vocab_size": 24}
    assert written(found)["vocab_size"] is None


@pytest.mark.parametrize(
    "shapes",
    [
        SHAPES,
        resized(8, norm=4),  # half of a checkpoint
        resized(24, head=16),
        {"model.embed_tokens.weight": (24, 4)},
        {"a.embed_tokens.weight": (24, 8), "b.embed_tokens.weight": (24, 8)},
        {"model.embed_tokens.weight": (24,)},
        {"model.norm.weight": (8,)},
    ],
    ids=["as said", "half", "another head", "another width", "two", "one dimension", "none"],
)
def test_where_more_differs_it_stays(told, shapes):
    found = told(shapes)
    assert found.warnings == ()
    assert found.config.changes == {}


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def test_quantisation_goes_at_every_level_where_there_is_none(told):
    parts = {"text_config": {"quantization_config": FP8, "a": 1}, "vision_config": {"b": 2}}
    found = told(quantization_config=FP8, **parts)
    assert "quantization_config" not in written(found)
    assert written(found)["text_config"] == {"a": 1}
    assert written(found)["vision_config"] == {"b": 2}
    assert list(found.dropped) == [
        "config.json: quantization_config",
        "config.json: text_config.quantization_config",
    ]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.weight", "float8_e4m3fn"), ("a.qweight", "int32"), ("a_blocks", "uint8")],
)
def test_quantised_weights_keep_what_says_so(tmp_path, name, dtype):
    import torch

    tensor = values(4, 4).to(getattr(torch, dtype))
    tensors = write_tensors(tmp_path / "x.safetensors", {name: tensor, "b": values(3)})
    config = write_config(tmp_path, **TINY, quantization_config=FP8)
    found = tell_truth(HubModel(dict(tensors), config))
    assert written(found)["quantization_config"] == FP8
    assert found.dropped == {}
    assert "quantization_config" not in json.loads(drop_quantisation(config).to_bytes())


def test_integers_that_are_no_weights_are_no_quantisation(tmp_path):
    import torch

    tensors = write_tensors(tmp_path / "x.safetensors", {"position_ids": torch.arange(4)})
    config = write_config(tmp_path, **TINY, quantization_config=FP8)
    assert "quantization_config" not in written(tell_truth(HubModel(dict(tensors), config)))


@pytest.mark.parametrize(
    "promise",
    [{"num_nextn_predict_layers": 2}, {"text_config": {"mtp_num_hidden_layers": 2}}],
    ids=str,
)
def test_layers_that_are_promised_and_not_there_are_said(told, promise):
    (said,) = told(**promise).warnings
    assert re.search(r"layers for multi-token prediction \(\w+ is 2\)", said)


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.enorm.weight", "mtp.layers.0.norm.weight", "model.mtp_layers.0.norm.weight",
     "model.nextn.0.weight"],
)  # fmt: skip
def test_where_they_are_nothing_is_said(told, name):
    assert told(SHAPES | {name: (8,)}, num_nextn_predict_layers=1).warnings == ()
    assert told(num_nextn_predict_layers=0).warnings == ()


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"vision_config": {}}, "vision beside"),
        ({"vision_config": {}, "audio_config": {}}, "vision and audio beside"),
        ({"thinker_config": {}, "talker_config": {}}, "thinker and talker beside"),
    ],
    ids=str,
)
def test_a_text_model_under_the_config_of_more_is_refused(tmp_path, parts, named):
    config = write_config(tmp_path, **TINY, **parts)
    with pytest.raises(MappingError, match=named) as refused:
        refuse_other_part(SHAPES, config)
    assert "`config=DIR`" in refused.value.hint
    assert refused.value.message.startswith(f"{config.path} is a multimodal model's (")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("vision_config", "visual.patch_embed.proj.weight"),
        ("vision_config", "model.vision_tower.layers.0.weight"),
        ("vision_config", "model.image_newline"),
        ("vision_config", "vpm.encoder.weight"),
        ("audio_config", "audio_tower.conv.weight"),
        ("thinker_config", "thinker.model.norm.weight"),
    ],
)
def test_one_with_a_tensor_of_it_is_not(tmp_path, key, name):
    refuse_other_part([*SHAPES, name], write_config(tmp_path, **TINY, **{key: {}}))
    refuse_other_part(SHAPES, write_config(tmp_path, **TINY, **{key: None}))
