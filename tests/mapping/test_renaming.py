"""Tensors by other names, where no two may get one."""

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.renaming import rename_all


def test_each_gets_its_new_name_in_the_same_order():
    assert [*rename_all({"b": 1, "a": 2, "c": 3}, str.upper).items()] == [
        ("B", 1),
        ("A", 2),
        ("C", 3),
    ]


def test_of_those_that_meet_every_name_is_said():
    with pytest.raises(MappingError, match="3 tensors get a name that another one has") as caught:
        rename_all(dict.fromkeys(["x.a", "y.a", "z.a", "b", "x.b", "c"]), lambda name: name[-1])
    assert caught.value.names == (
        "y.a: also x.a, both a",
        "z.a: also x.a, both a",
        "x.b: also b",
    )


def test_one_that_gets_the_name_of_a_later_one():
    with pytest.raises(MappingError, match="1 tensor gets a name") as caught:
        rename_all({"x.b": 1, "b": 2}, lambda name: name[-1])
    assert caught.value.names == ("b: also x.b",)
