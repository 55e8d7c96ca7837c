"""Keys that transformers 4 reads, added to configs of transformers 5."""

import copy
import json
import logging
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoConfig

from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.legacy_config import add_legacy_keys
from tests.support.tiny_models import build


def added(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that ``config`` gets, after proving that it loses none."""
    before = copy.deepcopy(config)
    result = add_legacy_keys(config)
    assert config == before
    assert {key: result[key] for key in config} == config
    return {key: value for key, value in result.items() if key not in config}


def test_rope_without_scaling_gives_theta_and_a_null():
    rope = {"rope_type": "default", "rope_theta": 5e5}
    assert added({"rope_parameters": rope}) == {"rope_theta": 5e5, "rope_scaling": None}


def test_rope_scaling_keeps_its_type_but_neither_theta_nor_partial_factor():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    rope = {**scaling, "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    expected = {"rope_theta": 1e6, "partial_rotary_factor": 0.25, "rope_scaling": scaling}
    assert added({"rope_parameters": rope}) == expected


@pytest.mark.parametrize("kind", [{"rope_type": "default"}, {"type": "mrope"}, {}])
def test_sections_of_multimodal_rope_count_as_scaling(kind):
    scaling = {**kind, "mrope_section": [2, 1, 1]}
    found = added({"rope_parameters": {**scaling, "rope_theta": 1e4}})
    assert found == {"rope_theta": 1e4, "rope_scaling": scaling}


def test_scaling_is_never_written_without_its_theta():
    # transformers 5 prefers rope_scaling to rope_parameters and then takes theta from the top.
    found = added({"rope_parameters": {"rope_type": "linear", "factor": 2.0}})
    assert "rope_scaling" not in found


@pytest.mark.parametrize("rope", [{}, None, {"rope_type": "axial", "rope_theta": 1e4}])
def test_rope_that_transformers_4_does_not_know_adds_nothing(rope):
    assert added({"rope_parameters": rope}) == {}


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [
        ("phi3", {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}),
        (
            "llama",
            {
                "rope_type": "longrope",
                "short_factor": [1.0],
                "long_factor": [2.0],
                "original_max_position_embeddings": 4096,
            },
        ),
    ],
)
def test_longrope_of_phi3_has_three_keys_only(kind, scaling):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0],
        "long_factor": [2.0],
        "original_max_position_embeddings": 4096,
    }
    assert added({"model_type": kind, "rope_parameters": rope})["rope_scaling"] == scaling


LINEAR = {"rope_type": "linear", "factor": 8.0}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize("kind", ["gemma3_text", "gemma3n_text"])
@pytest.mark.parametrize("scaling", [None, LINEAR])
def test_local_and_global_rope_are_told_apart(kind, scaling):
    full = {**(scaling or {"rope_type": "default"}), "rope_theta": 1e6}
    rope = {"full_attention": full, "sliding_attention": LOCAL}
    expected = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": scaling}
    assert added({"model_type": kind, "rope_parameters": rope}) == expected


def test_rope_per_kind_of_layer_of_other_families_is_left_alone():
    rope = {"full_attention": LOCAL, "sliding_attention": LOCAL}
    assert added({"model_type": "some", "rope_parameters": rope}) == {}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("qwen3_moe", {"num_experts": 5}),
        ("qwen3_vl_moe_text", {"num_experts": 5}),
        ("mixtral", {}),
        ("gpt_oss", {}),
    ],
)
def test_number_of_experts_has_its_old_name(kind, expected):
    assert added({"model_type": kind, "num_local_experts": 5}) == expected


def test_dtype_has_its_old_name():
    assert added({"dtype": "bfloat16"}) == {"torch_dtype": "bfloat16"}
    assert added({"dtype": None}) == {}
    assert added({"dtype": "bfloat16", "torch_dtype": "float32"}) == {}


def test_keys_that_are_there_win():
    config = {
        "model_type": "qwen3_moe",
        "num_local_experts": 5,
        "num_experts": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
        "rope_theta": 7.0,
        "rope_scaling": {"type": "linear"},
    }
    assert added(config) == {}


def test_nested_configs_get_their_own_keys():
    nested = {
        "model_type": "qwen3_vl_moe_text",
        "num_local_experts": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
        "deeper_config": {"dtype": "float16"},
    }
    config = {"model_type": "qwen3_vl_moe", "text_config": nested, "other": {"dtype": "float16"}}
    result = add_legacy_keys(config)
    text = {"num_experts": 4, "rope_theta": 5.0, "rope_scaling": None}
    deeper = {"dtype": "float16", "torch_dtype": "float16"}
    assert result == {**config, "text_config": {**nested, **text, "deeper_config": deeper}}


ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["default", "yarn", "linear", "longrope", "axial"]),
        "rope_theta": st.floats(1, 10),
        "partial_rotary_factor": st.floats(0, 1),
        "short_factor": st.just([1.0]),
        "factor": st.just(2.0),
        "full_attention": st.just(LOCAL),
        "sliding_attention": st.just(LOCAL),
    },
)
KEYS = {
    "model_type": st.sampled_from(["llama", "phi3", "gemma3_text", "qwen3_moe"]),
    "num_local_experts": st.integers(1, 3),
    "num_experts": st.integers(1, 3),
    "dtype": st.sampled_from([None, "float16"]),
    "torch_dtype": st.just("float32"),
    "rope_parameters": ROPE | st.none(),
    "rope_theta": st.just(1.0),
    "rope_scaling": st.none() | st.just({"type": "linear"}),
}
FLAT = st.fixed_dictionaries({}, optional=KEYS)
CONFIGS = st.fixed_dictionaries({}, optional={**KEYS, "text_config": FLAT, "vision_config": FLAT})


def holds(result: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether every item of ``config`` is in ``result``, at every level of nested configs."""
    return all(
        key in result
        and (holds(result[key], value) if key.endswith("_config") else result[key] == value)
        for key, value in config.items()
    )


@pytest.mark.slow
@given(CONFIGS)
@example({"model_type": "phi3", "rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}})
def test_nothing_is_removed_or_replaced_and_twice_is_once(config):
    before = copy.deepcopy(config)
    result = add_legacy_keys(config)
    assert config == before
    assert holds(result, config)
    assert add_legacy_keys(result) == result


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def read_by_transformers(folder, content: bytes) -> tuple[dict[str, Any], list[str]]:
    (folder / "config.json").write_bytes(content)
    records, logger = Records(), logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(records)
    logger.setLevel(logging.WARNING)
    try:
        return AutoConfig.from_pretrained(folder).to_dict(), records.messages
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)


@pytest.mark.parametrize(
    "family",
    "llama qwen3_moe gpt_oss gemma3_text gemma3 glm4_moe phi3 qwen2_5_vl qwen3_vl_moe mixtral"
    " qwen3_next llava".split(),
)
@pytest.mark.filterwarnings("error")
def test_transformers_5_reads_the_same_config_with_and_without_them(family, tmp_path):
    model = build(family)
    model.config.dtype = "bfloat16"
    model.config.save_pretrained(tmp_path)
    plain = (tmp_path / "config.json").read_bytes()
    augmented = load_config(tmp_path).to_bytes()
    assert json.loads(augmented)["torch_dtype"] == "bfloat16"
    expected, warned = read_by_transformers(tmp_path, plain)
    found, warned_now = read_by_transformers(tmp_path, augmented)
    found.pop("partial_rotary_factor", None)
    expected.pop("partial_rotary_factor", None)
    assert found == expected
    assert warned_now == warned
