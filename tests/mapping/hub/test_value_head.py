"""What a value head must be, and under which of its names it is compared."""

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.hub.architecture import name_architecture, warn_of_unknown_class
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.hub.value_head import match_heads, refuse_value_head, take_value_head
from tests.support.merging import TINY
from tests.support.saved import write_config, write_shapes
from tests.support.versions import needs_transformers_5

HEAD = {"v_head.summary.weight": (1, 8), "v_head.summary.bias": (1,)}
NORM = {"model.norm.weight": (8,)}


@pytest.fixture
def split(tmp_path):
    def run(shapes, wanted=None, **config):
        tensors = write_shapes(tmp_path / "x.safetensors", shapes)
        model = HubModel(dict(tensors), write_config(tmp_path, **(TINY | config)))
        return take_value_head(model, wanted)

    return run


@pytest.mark.parametrize("wrapper", ["", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("prefix", ["", "pretrained_model."])
def test_the_head_is_taken_off(split, wrapper, prefix):
    shapes = {f"{prefix}{wrapper}{name}": shape for name, shape in NORM.items()}
    found = split(shapes | {f"{wrapper}{name}": shape for name, shape in HEAD.items()})
    assert found.tensors.keys() == NORM.keys()
    assert found.head.keys() == HEAD.keys()


def test_a_plain_model_is_left_as_it_is(split):
    attention = {"model.attention.v_head.weight": (8, 8), "model.attention.v_head.bias": (8,)}
    shapes = {"_orig_mod.model.norm.weight": (8,), "model.v_head_norm.weight": (2,)} | attention
    assert split(shapes).tensors.keys() == shapes.keys()


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (HEAD | {"v_head.summary.bias": (2,)}, "v_head.summary.bias: [2], expected [1]"),
        (
            HEAD | {"v_head.summary.weight": (1, 9)},
            "v_head.summary.weight: [1, 9], expected [1, 8]",
        ),
        (
            HEAD | {"v_head.summary.weight": (2, 8)},
            "v_head.summary.weight: [2, 8], expected [1, 8]",
        ),
        (HEAD | {"v_head.0.weight": (8, 8)}, "v_head.0.weight [8, 8]: not in trl's head"),
        (
            {"v_head.summary.weight": (1, 8)},
            "v_head.summary.bias: missing, expected [1]",
        ),
    ],
)
def test_another_kind_of_head_is_refused_by_name(split, shapes, named):
    with pytest.raises(MappingError, match="not that of trl") as refused:
        split(NORM | shapes)
    assert refused.value.names == (named,)
    assert "`keep_names=True`" in refused.value.hint


def test_a_head_of_one_tensor_is_refused_with_all_that_is_missing(split):
    with pytest.raises(MappingError) as refused:
        split(NORM | {"v_head.weight": (1, 8)})
    assert len(refused.value.names) == 3


@pytest.mark.parametrize("name", ["model.v_head.summary.weight", "pretrained_model.v_head.bias"])
def test_a_head_inside_the_model_is_refused_by_name(split, name):
    prefix = "pretrained_model." if name.startswith("pretrained_model.") else ""
    with pytest.raises(MappingError, match="inside the model") as refused:
        split({f"{prefix}model.norm.weight": (8,), name: (1, 8)} | HEAD)
    assert refused.value.names == (name.removeprefix("pretrained_model."),)


def test_encoder_decoders_are_refused_by_name(split):
    with pytest.raises(MappingError, match=r"encoder-decoder \(t5\)") as refused:
        split(NORM | HEAD, model_type="t5", is_encoder_decoder=True)
    assert refused.value.names == tuple(sorted(HEAD))


def test_a_model_that_lost_its_head_is_taken_without_one_only_if_told_so(split):
    shapes = {"pretrained_model.model.norm.weight": (8,)}
    with pytest.raises(MappingError, match="without a value head") as refused:
        split(shapes)
    assert "`value_model=False`" in refused.value.hint
    assert split(shapes, wanted=False).tensors.keys() == NORM.keys()


def test_opt_350m_projects_its_hidden_states(split):
    assert split(NORM | HEAD, hidden_size=16, word_embed_proj_dim=8).head.keys() == HEAD.keys()


def test_megatron_takes_no_two_heads():
    with pytest.raises(MappingError, match="Megatron has one head") as refused:
        refuse_value_head([*HEAD, "lm_head.weight", "model.norm.weight"])
    assert refused.value.names == tuple(HEAD)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"lm_head.weight"}, set(HEAD)),
        (set(HEAD), set(HEAD)),
        ({*HEAD, "score.weight", "score.bias"}, {*HEAD, "score.weight", "score.bias"}),
        ({"score.weight", "score.bias"}, {"score.weight", "score.bias"}),
        ({"classifier.weight", "classifier.bias"}, {"classifier.weight", "classifier.bias"}),
    ],
    ids=["no head", "trl's", "both", "score", "classifier"],
)
def test_a_head_has_the_names_it_has_on_the_other_side(tmp_path, others, expected):
    tensors = write_shapes(tmp_path / "x.safetensors", NORM | HEAD)
    assert match_heads(tensors, others).keys() == NORM.keys() | expected


@needs_transformers_5
@pytest.mark.parametrize(
    ("model_type", "score", "named", "known"),
    [
        ("llama", ("score.weight",), "LlamaForSequenceClassification", True),
        ("llama", ("score.weight", "score.bias"), "LlamaForTokenClassification", True),
        ("gemma3_text", ("score.weight",), "Gemma3TextForSequenceClassification", True),
        ("glm4_moe", ("score.weight",), "Glm4MoeForSequenceClassification", False),
        (
            "qwen2_5_vl",
            ("score.weight", "score.bias"),
            "Qwen2_5_VLForTokenClassification",
            False,
        ),
    ],
)
def test_classifiers_have_transformers_class_or_a_warning(
    tmp_path, model_type, score, named, known
):
    shapes = NORM | {name: (1, 8) if "weight" in name else (1,) for name in score}
    tensors = write_shapes(tmp_path / "x.safetensors", shapes)
    config = name_architecture(tensors, write_config(tmp_path, model_type=model_type))
    assert config.architecture == named
    assert list(config.changes["id2label"]) == ["0"]
    warnings = warn_of_unknown_class(config)
    assert [named in said for said in warnings] == ([] if known else [True])


@needs_transformers_5
def test_the_only_classifier_of_a_family_stays(tmp_path):
    from transformers.models.auto import modeling_auto as auto

    named = auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.get("qwen3_asr")
    if named is None:
        pytest.skip("this transformers does not have it")
    tensors = write_shapes(tmp_path / "x.safetensors", NORM | {"score.weight": (3, 8)})
    said = write_config(tmp_path, model_type="qwen3_asr", architectures=[named])
    assert name_architecture(tensors, said).architecture == named
