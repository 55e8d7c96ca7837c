"""Every row of the table of families: well formed, and what transformers says where it says it."""

import ast
import contextlib
import re
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import modeling_auto as auto

import ckpt_tool
from ckpt_tool.mapping.families.family import Family
from ckpt_tool.mapping.families.hub_rules import Rename, SplitExperts, TransposeExperts
from ckpt_tool.mapping.families.megatron_rows import TOP
from ckpt_tool.mapping.families.table import FAMILIES, UNKNOWN, find_family
from ckpt_tool.mapping.megatron.gated_ops import GATED_OPS
from tests.support.every_class import find_wide, make_config
from tests.support.megatron_models import CONFIGS, config_of, rules_of
from tests.support.tiny_models import MODELS, build
from tests.support.versions import TRANSFORMERS, needs_transformers_5

ROOT = Path(ckpt_tool.__file__).parent
OPS = {"same", "vocabulary", "gate_up", "qkv", "stacked_qkv", "swap_halves", "one_row", "turned"}
OPS |= {"packed", "packed_turned"}
OPS |= {"grouped_qkv", "alike_qkv", "alternating", "wide_qkv", "sliding_qkv"}
WHEN_PACKED = {"packed", "unpacked"}
OPS |= GATED_OPS.keys() | {"rows"}
#: Rows that are there where the model or its config says so, beside the flags of families.
WHEN = {
    "",
    "untied",
    "value",
    "value_bias",
    "layer_norm",
    "plain_query",
    "low_query",
    "shared_experts",
}

#: Families whose rows say what their tensors are, and so what is float32 of these.
WITH_TENSORS = [m for m, row in FAMILIES.items() if row.hub is not None or row.megatron is not None]

every_family = pytest.mark.parametrize("model_type", FAMILIES)


@every_family
def test_a_row_says_something_and_its_rules_change_something(model_type):
    family = FAMILIES[model_type]
    assert family != UNKNOWN
    assert re.fullmatch(r"[A-Za-z0-9_-]+", model_type)
    for rule in family.hub or ():
        assert isinstance(rule, (Rename, SplitExperts, TransposeExperts))
        if isinstance(rule, Rename):
            assert rule.old != rule.new
            assert "" not in (rule.old, rule.new)
        else:
            assert rule.path.endswith("experts")
    if family.float32:
        re.compile(family.float32)


@needs_transformers_5
@every_family
def test_the_class_is_that_of_transformers(model_type):
    named = FAMILIES[model_type].architecture
    if named:
        tables = (
            auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )
        assert {table[model_type] for table in tables if model_type in table} == {named}
        assert hasattr(transformers, named)


def list_family(model_type: str) -> list[str]:
    """Its classes that write text, or judge it."""
    kinds = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION")
    tables = [getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES") for kind in kinds]
    return sorted({table[model_type] for table in tables if model_type in table})


def look_for_float32(model_type: str, dtype: str) -> dict[str, list[str]]:
    """What each class of a family holds as float32, of those that can be built tiny."""
    found = {}
    for name in list_family(model_type):
        model_class = getattr(transformers, name)
        if model_type in MODELS and MODELS[model_type].model_class == name:
            found[name] = find_wide(model_class, build(model_type).config, dtype)
            continue
        with contextlib.suppress(Exception):
            found[name] = find_wide(model_class, make_config(model_type, model_class), dtype)
    return found


@needs_transformers_5
@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type", [m for m, row in FAMILIES.items() if row.hub or row.megatron]
)
def test_what_a_row_says_of_float32_holds_for_each_class_of_the_family(model_type):
    row = FAMILIES[model_type]
    held = {dtype: look_for_float32(model_type, dtype) for dtype in ("bfloat16", "float16")}
    if not held["bfloat16"]:
        pytest.skip("transformers does not have it, or its config cannot be made small")
    names = [name for found in held.values() for each in found.values() for name in each]
    if row.float32 is None:  # else the row could say it, and nobody would have to ask
        assert names or row.hub is None or TRANSFORMERS < (5, 24)
    else:
        assert [name for name in names if not re.search(row.float32 or r"(?!)", name)] == []
        assert bool(names) is bool(row.float32)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_rows_of_megatron_are_spelled_in_words_that_are_known(model_type):
    rows = FAMILIES[model_type].megatron
    vision = rows.around.vision
    tower = vision.rows + vision.block + vision.merger if vision else ()
    sizes = rules_of(model_type).numbers.sizes.keys() | {"shared_ffn", "query_rank", "expert_ffn"}
    sizes |= {"vision", "vision_qkv", "vision_ffn", "merged", "positions"}
    others = [row for each in rows.attentions.values() for row in each]
    for row in (
        *TOP,
        *rows.attention,
        *rows.dense,
        *rows.moe,
        *rows.mtp.rows,
        *rows.mtp.dense,
        *rows.mtp.end,
        *rows.around.beside,
        *others,
        *tower,
    ):
        assert row.op in OPS
        assert row.when in WHEN | WHEN_PACKED | rows.flags.keys() | {"qk_norm", "qkv_bias"} | {
            "output_bias",
            "mlp_bias",
        }
        assert set(f"{row.shape} {row.whole}".replace(",", " ").split()) <= sizes
        assert row.hf.count("{e}") == row.megatron.count("{e}")
    prefix = rows.mtp.prefix.format(after=3, number=0)
    assert prefix.endswith(".")
    assert config_of(model_type).family is FAMILIES[model_type]


def test_what_nobody_knows_is_nothing_special():
    assert find_family("no_such_family") is UNKNOWN
    assert Family() == UNKNOWN
    assert UNKNOWN.known_float32 is None


@pytest.mark.slow
def test_model_types_are_named_in_the_table_only():
    found = {
        f"{path.relative_to(ROOT)}: {node.value}"
        for path in ROOT.rglob("*.py")
        if "families" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in FAMILIES
    }
    assert found == set()
