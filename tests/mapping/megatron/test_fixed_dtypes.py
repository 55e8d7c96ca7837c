"""What Megatron keeps in a dtype of its own is found by names, whichever rows say it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from ckpt_tool.mapping.families.megatron_form import Row
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.megatron.fixed_dtypes import hold_fixed
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.tensors.dtypes import BY_NAME
from tests.support.megatron_models import CONFIGS, rules_of

ROWS = {name: family.megatron for name, family in FAMILIES.items() if family.megatron}


def walk(part: Any) -> Iterator[Row]:
    """The rows anywhere in it."""
    if isinstance(part, Row):
        yield part
    elif is_dataclass(part):
        for field in fields(part):
            yield from walk(getattr(part, field.name))
    elif isinstance(part, (tuple, dict)):
        for each in part.values() if isinstance(part, dict) else part:
            yield from walk(each)


@pytest.mark.parametrize("family", ROWS)
def test_every_row_with_a_dtype_is_found(family):
    rows = ROWS[family]
    wanted = {f"a.0.{row.hf}": BY_NAME[row.dtype] for row in walk(rows) if row.dtype}
    assert hold_fixed([*wanted, *(f"a.0.{row.hf}x" for row in walk(rows))], rows) == wanted
    assert not any("{" in name for name in wanted)


@pytest.mark.parametrize("family", CONFIGS)
def test_so_is_what_a_model_has_of_them_and_nothing_else(family):
    rules = rules_of(family)
    names = [name for each in rules.bindings for name in each.hf]
    assert hold_fixed(names, require_rows(rules.config)) == {
        name: BY_NAME[each.dtype] for each in rules.bindings if each.dtype for name in each.hf
    }
