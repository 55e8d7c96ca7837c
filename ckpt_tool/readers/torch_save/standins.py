"""What a pickle is made of here: names that may be called, and objects that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_tool.common.errors import FormatError

#: Arguments of a call, dimensions of a tensor, attributes of an object: no real file has more.
#: The limit keeps the work linear in the size of the pickle, however often it repeats itself.
MAX_ITEMS = 64

#: Characters of a name: of a class, a tensor, a storage.
MAX_NAME = 1000


def describe(value: Any) -> str:
    """A value out of a pickle for people, in a few words: what it holds may hold itself."""
    if isinstance(value, (str, bytes)):
        return repr(value[:MAX_ITEMS])
    if isinstance(value, (int, float, type(None))):
        return repr(value)
    return f"a {name_kind(value)}"


def name_kind(value: Any) -> str:
    """What a value out of a pickle is: the class that a stand-in stands for, or its own."""
    return value.kind if isinstance(value, StandIn) else type(value).__name__


@dataclass(frozen=True, slots=True)
class Builder:
    """A callable name of the pickle, as a function of our own.

    ``foreign``: of a package that nothing is known of.
    """

    qualname: str
    call: Callable[..., Any]
    foreign: bool = False


@dataclass(slots=True, eq=False)
class StandIn:
    """An instance of any class: its name, constructor arguments and state; it does nothing.

    ``foreign``: of a package that nothing is known of.
    """

    qualname: str
    args: tuple[Any, ...]
    state: Any = None
    foreign: bool = False

    @property
    def kind(self) -> str:
        """The class's own name, without its module: modules move between torch releases."""
        return self.qualname.rsplit(".", 1)[-1]

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute ``name`` of the pickled object, where its state is a dict."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default

    def set_state(self, state: Any) -> None:
        """Take a pickled state; ``(dict, slots)`` pairs become one dict."""
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            first, second = state
            if not first:
                state = second
            elif isinstance(first, dict) and len(first) + len(second) <= MAX_ITEMS:
                state = first | second
        self.state = state


def list_fields(value: Any, *names: str) -> list[Any]:
    """Attributes of a stand-in: by name in its state, else by position in its arguments."""
    if not isinstance(value, StandIn):
        raise FormatError(f"a {type(value).__name__} where an object with {names} was expected")
    if isinstance(value.state, dict) and all(name in value.state for name in names):
        return [value.state[name] for name in names]
    held = value.state if isinstance(value.state, tuple) else value.args
    if len(held) < len(names):
        raise FormatError(f"a {value.kind} without {', '.join(names)}")
    return list(held[: len(names)])


def list_few(values: Any) -> Sequence[Any]:
    """A list of a few: one that many tensors share is walked for each of them."""
    if not isinstance(values, (tuple, list)) or len(values) > MAX_ITEMS:
        raise FormatError("a list that is none, or that is longer than any that torch writes")
    return values
