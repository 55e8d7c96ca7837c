"""Regular expressions that an adapter's own settings hold, matched in linear time.

Python's ``re`` tries one way after the other, and a pattern of twenty characters can have more ways
than there is time. Here all ways are gone at once: what is kept is the set of places of the name
that the pattern so far can end at, and the steps are counted. Python's own parser says what a
pattern means; what needs memory of what was matched (backreferences, atomic groups) or looks behind
is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from ckpt_tool.common.errors import FormatError

_parser: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

Places = frozenset[int]
_LONGEST = 20_000
_MOST_REPEATS = 1_000
#: Each node of a pattern sees each place once, a few times more where repetitions lie in others.
_STEPS_PER_PLACE = 20

_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "WORD": lambda c: c.isalnum() or c == "_",
    "SPACE": str.isspace,
}


class Pattern:
    """A pattern that :func:`compile_pattern` took."""

    def __init__(self, text: str, tree: Sequence[Any]) -> None:
        self._text = text
        self._tree = tree

    def matches(self, name: str) -> bool:
        """Whether it matches the whole of ``name``, as ``re.fullmatch``."""
        return self._reaches_end(name, frozenset((0,)))

    def matches_end(self, name: str) -> bool:
        """Whether it matches the whole of ``name``, or its end from a dot on."""
        starts = frozenset((0, *(at + 1 for at, c in enumerate(name) if c == ".")))
        return self._reaches_end(name, starts)

    def _reaches_end(self, name: str, starts: Places) -> bool:
        steps = _STEPS_PER_PLACE * (len(self._text) + 10) * (len(name) + 10)
        try:
            return len(name) in _Walk(name, steps).follow(self._tree, starts)
        except TimeoutError:
            said = f"{self._text!r:.80} takes too long to match: its repetitions lie in others"
            raise FormatError(said) from None


@lru_cache(maxsize=4096)
def compile_pattern(text: str) -> Pattern:
    """The pattern; FormatError where it is none, or one that cannot be matched in linear time."""
    if len(text) > _LONGEST:
        raise FormatError(f"a pattern of {len(text):,} characters, expected up to {_LONGEST:,}")
    try:
        re.compile(text)
        tree = _parser.parse(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise FormatError(f"{text!r:.80} is no regular expression ({error})") from error
    if tree.state.flags != re.UNICODE:
        raise FormatError(f"{text!r:.80} changes the flags of a regular expression")
    _require_regular(tree, text)
    return Pattern(text, tree)


def _require_regular(tree: Sequence[Any], text: str) -> None:
    for op, argument in tree:
        if str(op) not in _STEPS or (str(op).startswith("ASSERT") and argument[0] < 0):
            what = str(op).lower().replace("_", " ")
            raise FormatError(f"{text!r:.80} needs {what}, which is not supported")
        if op in (_parser.MAX_REPEAT, _parser.MIN_REPEAT):
            least, most, _ = argument
            if least > _MOST_REPEATS or _MOST_REPEATS < most < int(_parser.MAXREPEAT):
                said = f"{text!r:.80} repeats more than {_MOST_REPEATS:,} times"
                raise FormatError(said)
        for inner in _list_inner(str(op), argument):
            _require_regular(inner, text)


def _list_inner(op: str, argument: Any) -> list[Sequence[Any]]:
    if op == "BRANCH":
        return list(argument[1])
    if op in ("MAX_REPEAT", "MIN_REPEAT"):
        return [argument[2]]
    if op == "SUBPATTERN":
        return [argument[3]]
    return [argument[1]] if op.startswith("ASSERT") else []


class _Walk:
    """One name; what is looked ahead at a place is known when it is asked again."""

    def __init__(self, name: str, steps: int) -> None:
        self._name = name
        self._steps = steps
        self._ahead: dict[tuple[int, int], bool] = {}

    def follow(self, tree: Sequence[Any], places: Places) -> Places:
        """Where ``tree`` ends, from any of these places."""
        for op, argument in tree:
            if not places:
                break
            self._steps -= len(places)
            if self._steps < 0:
                raise TimeoutError
            places = _STEPS[str(op)](self, argument, places)
        return places

    def one(self, fits: Callable[[str], bool], places: Places) -> Places:
        name = self._name
        return frozenset(at + 1 for at in places if at < len(name) and fits(name[at]))

    def branch(self, argument: Any, places: Places) -> Places:
        return frozenset().union(*(self.follow(tree, places) for tree in argument[1]))

    def repeat(self, argument: Any, places: Places) -> Places:
        """A place that was reached with fewer rounds needs no second look: more are left there."""
        least, most, tree = argument
        for _ in range(least):
            before, places = places, self.follow(tree, places)
            if before == places:
                break
        found = newest = places
        for _ in range(min(int(most) - least, len(self._name) + 1)):
            newest = self.follow(tree, newest) - found
            if not newest:
                break
            found |= newest
        return found

    def at(self, argument: Any, places: Places) -> Places:
        return frozenset(at for at in places if self._is_at(str(argument), at))

    def _is_at(self, what: str, at: int) -> bool:
        end = len(self._name)
        if what in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return at == 0
        if what == "AT_END_STRING":
            return at == end
        if what == "AT_END":
            return at == end or (at == end - 1 and self._name[at] == "\n")
        is_word = _CATEGORIES["WORD"]
        before = at > 0 and is_word(self._name[at - 1])
        after = at < end and is_word(self._name[at])
        return (before != after) == (what == "AT_BOUNDARY")

    def ahead(self, argument: Any, places: Places) -> Places:
        return frozenset(at for at in places if self._looks(argument[1], at))

    def not_ahead(self, argument: Any, places: Places) -> Places:
        return frozenset(at for at in places if not self._looks(argument[1], at))

    def _looks(self, tree: Sequence[Any], at: int) -> bool:
        key = id(tree), at
        if key not in self._ahead:
            self._ahead[key] = bool(self.follow(tree, frozenset((at,))))
        return self._ahead[key]


def _fits(items: Sequence[Any], char: str) -> bool:
    """Whether a character is of a set."""
    negated = bool(items) and str(items[0][0]) == "NEGATE"
    found = any(_is_item(str(op), argument, char) for op, argument in items)
    return found != negated


def _is_item(op: str, argument: Any, char: str) -> bool:
    if op == "LITERAL":
        return bool(ord(char) == argument)
    if op == "RANGE":
        return bool(argument[0] <= ord(char) <= argument[1])
    if op == "CATEGORY":
        _, _, kind = str(argument).partition("CATEGORY_")
        return _CATEGORIES[kind.removeprefix("NOT_")](char) != kind.startswith("NOT_")
    return False


_Step = Callable[[_Walk, Any, Places], Places]
#: What is done with each kind of node of Python's parser.
_STEPS: dict[str, _Step] = {
    "LITERAL": lambda walk, code, places: walk.one(lambda c: ord(c) == code, places),
    "NOT_LITERAL": lambda walk, code, places: walk.one(lambda c: ord(c) != code, places),
    "ANY": lambda walk, _, places: walk.one(lambda c: c != "\n", places),
    "IN": lambda walk, items, places: walk.one(lambda c: _fits(items, c), places),
    "BRANCH": _Walk.branch,
    "SUBPATTERN": lambda walk, argument, places: walk.follow(argument[3], places),
    "MAX_REPEAT": _Walk.repeat,
    "MIN_REPEAT": _Walk.repeat,
    "AT": _Walk.at,
    "ASSERT": _Walk.ahead,
    "ASSERT_NOT": _Walk.not_ahead,
}
