"""Every row of the table of families: well formed, and what transformers says where it says it."""

import ast
import re
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import modeling_auto as auto

import ckpt_tool
from ckpt_tool.mapping.families.hub_rules import Rename, SplitExperts, TransposeExperts
from ckpt_tool.mapping.families.megatron_rows import TOP
from ckpt_tool.mapping.families.table import FAMILIES, UNKNOWN, Family, find_family
from tests.support.megatron_models import CONFIGS, config_of, rules_of
from tests.support.versions import needs_transformers_5

ROOT = Path(ckpt_tool.__file__).parent
OPS = {"same", "vocabulary", "gate_up", "qkv", "stacked_qkv", "swap_halves"}
#: Rows that are there where the model or its config says so, beside the flags of families.
WHEN = {"", "untied", "value", "value_bias", "plain_query", "low_query", "shared_experts"}

every_family = pytest.mark.parametrize("model_type", FAMILIES)


@every_family
def test_a_row_says_something_and_its_rules_change_something(model_type):
    family = FAMILIES[model_type]
    assert family != UNKNOWN
    assert re.fullmatch(r"[a-z0-9_-]+", model_type)
    for rule in family.hub or ():
        assert isinstance(rule, (Rename, SplitExperts, TransposeExperts))
        if isinstance(rule, Rename):
            assert rule.old != rule.new
            assert "" not in (rule.old, rule.new)
        else:
            assert rule.path.endswith("experts")
    if family.float32:
        re.compile(family.float32)
    assert family.torchtitan in ("", "halves", "neighbours")


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


@pytest.mark.parametrize("model_type", CONFIGS)
def test_rows_of_megatron_are_spelled_in_words_that_are_known(model_type):
    rows = FAMILIES[model_type].megatron
    tower = rows.vision.rows + rows.vision.block if rows.vision else ()
    sizes = rules_of(model_type).numbers.sizes.keys() | {"shared_ffn", "query_rank", "expert_ffn"}
    sizes |= {"vision", "vision_qkv", "vision_ffn", "merged"}
    for row in (*TOP, *rows.attention, *rows.dense, *rows.moe, *rows.mtp, *tower):
        assert row.op in OPS
        assert row.when in WHEN | rows.flags.keys() | {"qk_norm", "qkv_bias"} | {
            "output_bias",
            "mlp_bias",
        }
        assert set(row.shape.replace(",", " ").split()) <= sizes
        assert row.hf.count("{e}") == row.megatron.count("{e}")
    prefix = rows.mtp_prefix.format(after=3, number=0)
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
