"""Pickles written without the classes, read by Python's own unpickler."""

import argparse
import collections
import io
import pickle
import pickletools
import types
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.writers.torch_dist.pickling import (
    Call,
    Instance,
    Name,
    Pairs,
    Persistent,
    make_pickle,
)

LIMIT = 1 << 200
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-LIMIT, LIMIT),
    st.integers(-300, 300),
    st.floats(),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(scalars | st.tuples(scalars, scalars), inner, max_size=4),
    ),
    max_leaves=25,
)


def loaded(value):
    return pickle.loads(make_pickle(value))


@given(values)
def test_plain_values_come_back(value):
    """As text, too: 1, 1.0 and True are equal, and the signs of zeros, and no NaN is."""
    found = loaded(value)
    assert repr(found) == repr(value)


@given(values.filter(lambda value: "nan" not in repr(value)))
def test_plain_values_are_equal(value):
    assert loaded(value) == value


@pytest.mark.slow
@given(values)
def test_pickles_are_what_pickletools_accepts(value):
    """Every opcode is one of protocol 2, the stack ends empty, no memo slot is used unset."""
    data = make_pickle(value)
    pickletools.dis(data, io.StringIO())
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(data)) == 2
    assert data.endswith(b".")


EDGES = [0, 255, 256, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, 2**64, -(2**63)]
EDGES += [2**1999, -(2**1999), 2**127, 2**128, -(2**127) - 1]


@pytest.mark.parametrize("number", EDGES, ids=lambda n: f"{n:.3g}" if abs(n) < 2**999 else "huge")
def test_integers_at_the_edges_of_their_opcodes(number):
    assert loaded(number) == number


FLOATS = [0.0, -0.0, 1e-320, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("number", FLOATS, ids=repr)
def test_floats_at_the_edges(number):
    assert repr(loaded(number)) == repr(number)


@pytest.mark.parametrize(
    "text", ["", "a\nb", "\0", "'\"\\", "é", "模型", "🙂", "x" * 70_000], ids=range(8)
)
def test_texts(text):
    assert loaded({text: [text]}) == {text: [text]}


def test_deep_nesting_comes_back():
    value: object = "core"
    for _ in range(100):
        value = [(value,), {"a": 1}]
    assert loaded(value) == value


def test_names_are_the_things_themselves():
    found = loaded([Name("collections", "OrderedDict"), Name("fractions", "Fraction")])
    assert found == [collections.OrderedDict, Fraction]


def test_calls_are_their_results():
    fraction = Call(Name("fractions", "Fraction"), (3, Call(Name("builtins", "int"), ("4",))))
    assert loaded(fraction) == Fraction(3, 4)
    ordered = loaded(Call(Name("collections", "OrderedDict"), ([("b", 1), ("a", 2)],)))
    assert type(ordered) is collections.OrderedDict
    assert list(ordered.items()) == [("b", 1), ("a", 2)]


def test_instances_have_their_state():
    state = {"lr": 0.5, "list": [1, None], "nested": {"a": (True,)}}
    found = loaded(Instance(Name("argparse", "Namespace"), state))
    assert type(found) is argparse.Namespace
    assert found == argparse.Namespace(**state)
    inner = Instance(Name("types", "SimpleNamespace"), {"x": 1})
    outer = loaded(Instance(Name("types", "SimpleNamespace"), {"inner": inner}))
    assert outer == types.SimpleNamespace(inner=types.SimpleNamespace(x=1))


class Counter:
    """An object that takes its state by itself."""

    def __setstate__(self, state: tuple) -> None:
        self.first, self.second = state


def test_instances_may_take_their_state_by_themselves():
    found = loaded(Instance(Name(__name__, "Counter"), (1, "two")))
    assert (type(found), found.first, found.second) == (Counter, 1, "two")


def test_pairs_are_a_dict_with_any_keys():
    halves = [Call(Name("fractions", "Fraction"), (1, n)) for n in (2, 3)]
    assert loaded(Pairs(((halves[0], "a"), (halves[1], "b")))) == {
        Fraction(1, 2): "a",
        Fraction(1, 3): "b",
    }
    assert loaded(Pairs(())) == {}
    assert loaded(Pairs((("a", 1), ("a", 2)))) == {"a": 2}


def growth(item: object) -> int:
    """How many bytes an item takes when it comes again."""
    return len(make_pickle([item, item, item])) - len(make_pickle([item, item]))


def test_what_comes_again_comes_from_the_memo():
    text, name = "decoder.layers.mlp.linear_fc1.weight", Name("collections", "OrderedDict")
    assert growth(text) == growth(name) == 5
    assert growth(Call(name, ())) < 10
    first, second = loaded([text, text])
    assert first is second


def test_a_memo_of_many_entries_keeps_them_apart():
    texts = [f"t{number}" for number in range(1000)]
    names = [Name("builtins", name) for name in ("int", "str", "float")]
    assert loaded([*texts, *names, *texts[::-1], *names]) == [
        *texts,
        *(int, str, float),
        *texts[::-1],
        *(int, str, float),
    ]


def test_a_name_and_a_text_of_the_same_letters_are_two_things():
    found = loaded(["builtins", Name("builtins", "int"), "int", "builtins\nint"])
    assert found == ["builtins", int, "int", "builtins\nint"]


class Reader(pickle.Unpickler):
    """Answers persistent ids with themselves, marked."""

    def persistent_load(self, pid: object) -> tuple:
        return ("from outside", pid)


def test_persistent_ids_reach_the_unpickler():
    identity = ("storage", Name("builtins", "int"), "0", "cpu", 6)
    data = make_pickle({"a": Persistent(identity), "b": [Persistent(7)]})
    assert Reader(io.BytesIO(data)).load() == {
        "a": ("from outside", ("storage", int, "0", "cpu", 6)),
        "b": [("from outside", 7)],
    }
    with pytest.raises(pickle.UnpicklingError, match="persistent"):
        pickle.loads(data)


@pytest.mark.slow
@given(values)
def test_the_same_value_gives_the_same_bytes(value):
    assert make_pickle(value) == make_pickle(loaded(value))


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", 1j, object], ids=repr)
def test_other_types_are_no_values(value):
    with pytest.raises(KeyError):
        make_pickle([value])
