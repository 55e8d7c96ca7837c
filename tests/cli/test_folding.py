"""Folding names into patterns: nothing claimed that is not there, nothing lost."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.cli.folding import Fold, fold


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for."""
    parts: list[list[str]] = []
    for piece in re.split(r"(\{[0-9.,]+\})", pattern):
        if not re.fullmatch(r"\{[0-9.,]+\}", piece):
            parts.append([piece])
            continue
        values = []
        for run in piece[1:-1].split(","):
            first, _, last = run.partition("..")
            values += [str(n) for n in range(int(first), int(last or first) + 1)]
        parts.append(values)
    return ["".join(choice) for choice in itertools.product(*parts)]


def patterns(*names: str) -> list[str]:
    return [found.pattern for found in fold(dict.fromkeys(names, "shape"))]


def test_layers_fold_into_a_range():
    names = [f"model.layers.{n}.up.weight" for n in range(12)]
    assert fold(dict.fromkeys(names, 0)) == [
        Fold("model.layers.{0..11}.up.weight", "model.layers.0.up.weight", 12)
    ]


def test_gaps_are_shown():
    assert patterns("a.0", "a.1", "a.3", "a.5", "a.6", "a.7") == ["a.{0..1,3,5..7}"]
    assert patterns("a.2", "a.0") == ["a.{0,2}"]


def test_a_single_name_is_itself():
    assert fold({"model.layers.3.weight": 1}) == [
        Fold("model.layers.3.weight", "model.layers.3.weight", 1)
    ]
    assert fold({}) == []


def test_two_numbers_fold_into_a_product():
    names = [f"l.{n}.e.{e}.w" for n in (1, 2) for e in range(4)]
    assert patterns(*names) == ["l.{1..2}.e.{0..3}.w"]


def test_an_incomplete_product_is_split():
    names = [f"l.{n}.e.{e}.w" for n in (0, 1) for e in (0, 1)][:-1]
    assert sorted(itertools.chain.from_iterable(map(expand, patterns(*names)))) == names


def test_different_values_stay_apart():
    found = fold({"a.0.w": (2, 3), "a.1.w": (2, 3), "a.2.w": (4, 3), "b.w": (2, 3)})
    assert [f.pattern for f in found] == ["a.{0..1}.w", "a.2.w", "b.w"]


def test_numbers_within_words_do_not_fold():
    assert patterns("conv1.w", "conv2.w") == ["conv1.w", "conv2.w"]


def test_leading_zeros_are_part_of_a_name():
    found = fold(dict.fromkeys(["a.01.w", "a.1.w", "b.007.w"], 0))
    assert {f.first for f in found} <= {"a.01.w", "a.1.w", "b.007.w"}
    assert sum(f.count for f in found) == 3


def test_braces_in_names_are_harmless():
    for name in ("{}", "a{}.1", "{0..3}", "a.{}.{}", "{0}"):
        (found,) = fold({name: 0})
        assert (found.first, found.count) == (name, 1)


def test_a_number_of_thousands_of_digits_is_a_name_too():
    name = "a." + "9" * 5000
    assert fold({name: 0})[0].first == name


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(0, 3)),
        st.integers(0, 1),
        max_size=40,
    )
)
def test_patterns_stand_for_every_name_exactly_once(numbers):
    names = {f"{kind}.{n}.x.{m}.w": value for (kind, n, m), value in numbers.items()}
    folds = fold(names)
    expanded = [expand(found.pattern) for found in folds]
    assert sorted(itertools.chain.from_iterable(expanded)) == sorted(names)
    for found, stands_for in zip(folds, expanded, strict=True):
        assert found.count == len(stands_for)
        assert found.first in stands_for
        assert len({names[name] for name in stands_for}) == 1


@pytest.mark.slow
def test_very_many_names_fold_at_once():
    """Each name is touched a few times: not once for each of the others."""
    names = dict.fromkeys((f"model.layers.{n}.weight" for n in range(60_000)), 0)
    assert fold(names) == [Fold("model.layers.{0..59999}.weight", "model.layers.0.weight", 60_000)]
    experts = dict.fromkeys((f"l.{n}.e.{e}.w" for n in range(20) for e in range(1000)), 0)
    assert [found.pattern for found in fold(experts)] == ["l.{0..19}.e.{0..999}.w"]
    del experts["l.7.e.9.w"]
    assert sum(found.count for found in fold(experts)) == len(experts)
