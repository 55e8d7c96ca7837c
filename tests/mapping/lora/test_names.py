"""Names of state dicts with adapters, taken apart."""

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.names import has_adapters, refuse_adapters, take_apart
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor

FACTORS = {"q.lora_A.default.weight": (2, 4), "q.lora_B.default.weight": (6, 2)}


def tensors(shapes):
    return {name: LazyTensor(shape, FLOAT32, FLOAT32, ()) for name, shape in shapes.items()}


def parts(shapes):
    return take_apart(tensors(shapes))


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "", "_fsdp_wrapped_module.base_model.model."]
)
def test_a_module_and_what_is_around_it(prefix):
    shapes = {"q.base_layer.weight": (6, 4), "q.base_layer.bias": (6,), "norm.weight": (4,)}
    found = parts({prefix + name: shape for name, shape in (shapes | FACTORS).items()})
    assert set(found.base) == {"q.weight", "q.bias", "norm.weight"}
    assert (found.modules["q"].a.shape, found.modules["q"].b.shape) == ((2, 4), (6, 2))
    assert found.modules["q"].rank == 2
    assert not found.saved


def test_names_of_files_of_adapters_have_no_adapter_in_them():
    stem = "base_model.model.q.lora_"
    found = parts({f"{stem}A.weight": (2, 4), f"{stem}B.weight": (6, 2)})
    assert list(found.modules) == ["q"]


@pytest.mark.parametrize("suffix", [".default.weight", ".default", ""])
def test_magnitudes_of_every_release(suffix):
    found = parts(FACTORS | {f"q.lora_magnitude_vector{suffix}": (6,)})
    assert found.modules["q"].magnitude is not None
    assert found.modules["q"].magnitude.shape == (6,)


def test_embeddings_and_what_was_trained_whole():
    found = parts(
        {
            "model.embed.base_layer.weight": (9, 4),
            "model.embed.lora_embedding_A.default": (2, 9),
            "model.embed.lora_embedding_B.default": (4, 2),
            "score.original_module.weight": (1, 4),
            "score.modules_to_save.default.weight": (1, 4),
        }
    )
    assert found.modules["model.embed"].is_embedding
    assert set(found.base) == {"model.embed.weight", "score.weight"}
    assert list(found.trained_whole()) == ["score.weight"]


def test_parameters_are_wrapped_one_around_the_other():
    inner = {f"e.base_layer.{name[2:]}": shape for name, shape in FACTORS.items()}
    outer = {f"e.{name[2:]}": shape for name, shape in FACTORS.items()}
    found = parts({"e.base_layer.base_layer.up": (3, 6, 4)} | inner | outer | {"norm.weight": (4,)})
    assert set(found.base) == {"e.up", "norm.weight"}
    assert {key: module.name for key, module in found.modules.items()} == {
        "e.base_layer": "e",
        "e": "e",
    }


def test_rows_of_embeddings_and_biases_of_factors():
    found = parts(
        FACTORS
        | {
            "q.base_layer.weight": (6, 4),
            "q.lora_B.default.bias": (6,),
            "e.token_adapter.base_layer.weight": (9, 4),
            "e.token_adapter.trainable_tokens_delta.default": (2, 4),
            "norm.weight": (4,),
        }
    )
    assert set(found.base) == {"q.weight", "e.weight", "norm.weight"}
    assert found.tokens["e"].shape == (2, 4)
    assert found.modules["q"].bias is not None
    assert found.modules["q"].bias.shape == (6,)


@pytest.mark.parametrize(
    ("shapes", "alone"),
    [
        ({}, True),
        ({"q.base_layer.bias": (6,), "k.bias": (6,)}, True),
        ({"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}, True),
        ({"q.base_layer.bias": (6,), "norm.weight": (4,)}, True),  # modules_to_save
        ({"q.base_layer.weight": (6, 4), "norm.weight": (4,)}, False),
        ({"q.base_layer.weight": (6, 4)}, False),
    ],
)
def test_what_is_saved_beside_adapters_is_no_model(shapes, alone):
    found = parts(FACTORS | shapes)
    assert (found.base == {}) == alone
    assert set(found.beside) == ({n.replace(".base_layer", "") for n in shapes} if alone else set())


def test_a_value_head_around_an_adapted_model_keeps_its_prefix():
    found = parts({"pretrained_model.base_model.model.norm.weight": (4,), "v_head.x": (1,)})
    assert set(found.base) == {"pretrained_model.norm.weight", "v_head.x"}


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({"q.lora_A.default.weight": (2, 4)}, "q: lora_A without lora_B"),
        ({"q.lora_B.default.weight": (2, 4)}, "q: lora_B without lora_A"),
        (FACTORS | {"q.lora_B.default.weight": (6, 3)}, "q: factors of shapes [2, 4] and [6, 3]"),
        (FACTORS | {"q.lora_A.default.weight": (2, 4, 1)}, "expected as many dimensions"),
        (
            {"q.lora_A.default.weight": (2, 4, 3), "q.lora_B.default.weight": (6, 2, 3)},
            "B of a convolution to have a kernel of one element",
        ),
        (FACTORS | {"k.lora_A.other.weight": (2, 4)}, "other"),
        (FACTORS | {"q.lora_A.default.bias": (2,)}, "q.lora_A.default.bias"),
        (FACTORS | {"e.token_adapter.base_layer.weight": (9, 4)}, "e: base_layer without"),
        (FACTORS | {"e.token_adapter.other": (9, 4)}, "e.token_adapter.other"),
        (FACTORS | {"q.base_layer.base_layer.weight": (6, 4)}, "q.base_layer: base_layer without"),
        (FACTORS | {"k.ia3_l.default": (1, 4)}, "k.ia3_l.default"),
        (FACTORS | {"k.vera_lambda_b.default": (4,)}, "k.vera_lambda_b.default"),
        ({"q.base_layer.weight": (6, 4)}, "q: base_layer without"),
        (FACTORS | {"k.base_layer.weight": (6, 4)}, "k: base_layer without"),
        (FACTORS | {"k.original_module.bias": (6,)}, "k: original_module without"),
        (FACTORS | {"n.weight": (1,), "_orig_mod.n.weight": (1,)}, "n.weight"),
    ],
)
def test_what_cannot_be_fused_is_named(shapes, named):
    with pytest.raises(MappingError) as error:
        parts(shapes)
    assert any(named in name for name in error.value.names), error.value.names


LAYER = "model.layers.0.self_attn.q_proj"
ADAPTED = [
    f"base_model.model.{LAYER}.lora_A.default.weight",
    f"{LAYER}.lora_A.weight",
    f"{LAYER}.lora_B.default.weight",
    f"{LAYER}.base_layer.weight",
    f"{LAYER}.lora_magnitude_vector.default.weight",
    "score.modules_to_save.default.weight",
    "score.original_module.weight",
    "model.embed_tokens.lora_embedding_A.default",
    f"_fsdp_wrapped_module.base_model.model.{LAYER}.lora_A.default.weight",
    "_fsdp_wrapped_module.base_model.model.model.norm.weight",
    "pretrained_model.base_model.model.model.norm.weight",
    "base_model.model.lm_head.weight",
]
PLAIN = [
    "model.q.weight",
    "model.w_lora.lora.0.weight",  # of RWKV, a model's own
    "model.lora_like.weight",
    "model.v_head_norm.weight",
    "base_model.weight",
]


@pytest.mark.parametrize("name", ADAPTED)
def test_what_is_of_adapters_is_taken_apart_or_refused_by_one_test(name):
    assert has_adapters(["lm_head.bias", name])
    with pytest.raises(MappingError) as refused:
        refuse_adapters(["lm_head.bias", name])
    assert refused.value.names == (name,)
    assert "first" in refused.value.hint


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names_are_no_adapters(name):
    assert not has_adapters([name])
    refuse_adapters([name])
