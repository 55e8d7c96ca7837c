"""JSON that somebody else wrote: read as what it is, and asked for values of a type.

Whoever goes on with a value has one that is of its type, finite, of a size that something can have,
and can be printed and written again. What is not is a FormatError that names the file and the key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.regular import read_regular

#: How deep values may lie in others; people's lie less than twenty deep.
_DEEPEST = 100
_NESTED = (dict, list)
#: Half of a pair, which a JSON text can spell and no encoding of text holds.
_SPELT_SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
_MOST = 1 << 48


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; FormatError where it holds none."""
    return require_object(read_json(path), path)


def read_json(path: Path) -> Any:
    """The JSON value in a file; FormatError where it holds none."""
    return parse_json(read_regular(path), path)


def parse_json(content: bytes, path: str | PathLike[str], *, halves: bool = False) -> Any:
    """The JSON value that ``content``, of the file ``path``, is.

    FormatError where it is none, where values lie too deep in others, and where a text has half of
    a surrogate pair, unless ``halves`` are let be: Python has them in names of files for bytes
    that are no text.
    """
    try:
        text = content.decode("utf-8")
        found = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"not JSON ({error})", path=path) from error
    except ValueError as error:  # Python reads none that long
        raise FormatError("holds a number of thousands of digits", path=path) from error
    _refuse_depth(found, path)
    if not halves and _SPELT_SURROGATE.search(text):
        _refuse_surrogates(found, path)
    return found


def require_object(found: Any, path: str | PathLike[str]) -> dict[str, Any]:
    """``found``, if it is an object; else FormatError."""
    if not isinstance(found, dict):
        raise FormatError("not a JSON object", path=path)
    return found


def _refuse_depth(found: Any, path: str | PathLike[str]) -> None:
    level = [found] if type(found) in _NESTED else []
    for _ in range(_DEEPEST):
        level = [
            value
            for each in level
            for value in (each.values() if type(each) is dict else each)
            if type(value) in _NESTED
        ]
        if not level:
            return
    raise FormatError(f"not JSON as anybody writes it: more than {_DEEPEST} levels deep", path=path)


def _refuse_surrogates(found: Any, path: str | PathLike[str]) -> None:
    """FormatError that names the place of a text that cannot be written; of a key, itself."""
    waiting: list[tuple[str, Any]] = [("", found)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, str) and not is_text(value):
            said = f"{where}: " if where else ""
            raise FormatError(f"{said}{value!r:.80} has half of a surrogate pair", path=path)
        if isinstance(value, dict):
            waiting += [("a key", key) for key in value]
            waiting += [(key, inner) for key, inner in value.items() if is_text(key)]
        elif isinstance(value, list):
            waiting += [(where, inner) for inner in value]


def is_text(value: str) -> bool:
    """Whether it can be encoded: not half of a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Fields:
    """The values of an object in the file ``path``, by key; None is as good as not there.

    FormatError where one is of another type than is asked for. ``place``: what is said before a
    key, of an object inside of others. ``assumed``: keys that nobody said, whose values are
    defaults.
    """

    values: Mapping[str, Any]
    path: str | PathLike[str]
    place: str = ""
    assumed: Set[str] = frozenset()

    def size(self, key: str, default: int | None = None, most: int = _MOST) -> int:
        """A number of something, from 0 to ``most``."""
        found = self.find_size(key, most)
        found = default if found is None else found
        if found is None:
            raise self._expected(key, "a size")
        return found

    def find_size(self, key: str, most: int = _MOST) -> int | None:
        """The same; None where nothing says it."""
        found = self.values.get(key)
        if found is not None and (type(found) is not int or not 0 <= found <= most):
            raise self._expected(key, "a size" if most == _MOST else f"a size up to {most:,}")
        return found

    def agreed_size(self, keys: Sequence[str], default: int | None = None) -> int:
        """The size that has all of ``keys`` as names, as in :meth:`size` and :meth:`agree`."""
        return self.size(self.agree(*keys), default)

    def agree(self, *keys: str) -> str:
        """The first of ``keys`` that is there, all of them names of one thing; else the first.

        One that is assumed counts where no other is there. FormatError where two of them say
        something different: no reader knows which one is true.
        """
        there = [key for key in keys if self.values.get(key) is not None] or [keys[0]]
        said = [key for key in there if key not in self.assumed] or there
        for key in said[1:]:
            if self.values.get(key) != self.values.get(said[0]):
                raise FormatError(
                    f"{self.place}{said[0]} is {show(self.values[said[0]])}, but {self.place}{key},"
                    f" another name for it, is {show(self.values[key])}",
                    path=self.path,
                )
        return said[0]

    def find_number(self, key: str, most: float = math.inf) -> float | None:
        """A finite number of at most ``most``, or minus that."""
        found = self.values.get(key)
        if found is None:
            return None
        if type(found) not in (int, float) or not is_finite(found) or abs(found) > most:
            limit = f" up to {most:g}" if most < math.inf else ""
            raise self._expected(key, f"a finite number{limit}")
        return float(found)

    def find_bool(self, key: str) -> bool | None:
        """True or false, of which 1 and 0 are other spellings; None where nothing says it."""
        found = self.values.get(key)
        if found is not None and (type(found) not in (bool, int) or found not in (0, 1)):
            raise self._expected(key, "true or false")
        return None if found is None else bool(found)

    def find_text(self, key: str) -> str | None:
        """A text."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, str):
            raise self._expected(key, "a text")
        return found

    def texts(self, key: str) -> list[str]:
        """A list of texts; nothing where there is none."""
        found = self.values.get(key) or []
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self._expected(key, "a list of texts")
        return found

    def sizes(self, key: str) -> list[int]:
        """A list of sizes; nothing where there is none."""
        found = self.values.get(key) or []
        if not isinstance(found, list) or not all(type(n) is int and 0 <= n < _MOST for n in found):
            raise self._expected(key, "a list of sizes")
        return found

    def object(self, key: str) -> dict[str, Any]:
        """An object; an empty one where there is none."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, dict):
            raise self._expected(key, "an object")
        return found or {}

    def inside(self, key: str) -> Fields:
        """What such an object says."""
        return Fields(self.object(key), self.path, f"{self.place}{key}.")

    def beside(self, key: str) -> Fields:
        """What such an object says beside what is said here: of some things either has the name."""
        found = self.object(key)
        assumed = self.assumed - found.keys()
        return Fields({**self.values, **found}, self.path, self.place, assumed)

    def _expected(self, key: str, what: str) -> FormatError:
        return FormatError(
            f"{self.place}{key} is {show(self.values.get(key))}, expected {what}", path=self.path
        )


def is_finite(number: float) -> bool:
    """Whether a number is one that a float holds, too."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def show(value: Any) -> str:
    """A value, for people: no longer than a line, and nothing that a terminal obeys."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
