"""A distance has a place between two colours, and is told in a few characters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.compare.scale import (
    DECADES,
    IMMEASURABLE,
    find_position,
    say_briefly,
    say_decade,
)

DISTANCES = st.floats(0, allow_nan=False, exclude_min=True)


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (math.ulp(0.0), 0), (1e-9, 0), (1e-7, 0), (1e-6, 1), (1e-3, 4), (2e-3, 4.30103), (1, 7),
        (50, 7), (math.inf, 7), (math.nan, 7),
    ],
)  # fmt: skip
def test_a_decade_is_one_step(distance: float, expected: float) -> None:
    assert find_position(distance) == pytest.approx(expected)


def test_what_is_equal_has_no_place() -> None:
    assert find_position(0.0) is None


@given(DISTANCES, DISTANCES)
def test_the_order_is_that_of_distances(one: float, other: float) -> None:
    places = [find_position(each) for each in sorted((one, other))]
    assert 0 <= places[0] <= places[1] <= len(DECADES) - 1


@pytest.mark.parametrize(
    ("distance", "text", "decade"),
    [
        (0.0, "\N{MIDDLE DOT}", "\N{MIDDLE DOT}"), (IMMEASURABLE, "~", "~"),
        (math.inf, "!", "!"), (math.nan, "!", "!"),
        (3.2e-4, "3e-4", "4"), (1e-4, "1e-4", "4"), (9.99e-5, "1e-4", "5"), (0.0994, "1e-1", "2"),
        (0.12, "0.12", "1"), (0.999, "1.0", "1"), (1.5, "1.5", "0"), (37.0, "37", "0"),
        (1e-300, "~0", "9"), (1e300, "9999", "0"),
    ],
)  # fmt: skip
def test_a_distance_in_few_characters(distance: float, text: str, decade: str) -> None:
    assert (say_briefly(distance), say_decade(distance)) == (text, decade)


@given(DISTANCES)
def test_a_few_characters_are_four_at_most(distance: float) -> None:
    assert 1 <= len(say_briefly(distance)) <= 4
    assert len(say_decade(distance)) == 1
    if math.isfinite(distance) and 1e-9 < distance < 9999 and distance != IMMEASURABLE:
        assert float(say_briefly(distance)) == pytest.approx(distance, rel=0.5)
