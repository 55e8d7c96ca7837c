"""A state dict in one file of ``torch.save``, by itself or in dictionaries with the run's state.

``{"model": ..., "optimizer": ..., "step": 3}``, ``{"state_dict": ...}``, ``{"module": ...}`` and
whatever else people write: every tensor in dictionaries and lists is found, and named by the keys
on its way, joined with dots, as torch.distributed.checkpoint does. What is no tensor is listed and
not looked into.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.readers.fsdp.dtensor import RankDecoder
from ckpt_tool.readers.torch_save.names import refuse_foreign
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.readers.torch_save.standins import MAX_NAME, Builder, StandIn, name_kind

#: Dictionaries in each other: what runs save has a dozen.
_MOST_LEVELS = 64
#: Characters of a key that says what it is of.
_LONGEST = 64
#: Keys of what belongs to a run: its objects are of any class.
_RUN = re.compile(
    r"args|cfg|config|hparams|hyper_parameters|content_metadata|callbacks|loops"
    r"|(\w+_)?(optim\w*|schedulers?\w*|rng_states?|random_states?|dataloader\w*)"
)
#: Keys under which people save a model.
_MODEL = re.compile(r"(model|module|net|network|ema)(_state(_dict)?)?|state_dict")


@dataclass
class Found:
    """What a file holds.

    ``tensors``: values that :class:`~ckpt_tool.readers.fsdp.dtensor.RankDecoder` takes, by name.
    ``groups``: of each of them, what its name begins with, up to the dictionary that it is in.
    ``objects``: names of what else there is. ``problems``: what cannot be a part of a model.
    """

    tensors: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def find_tensors(state: Any, room: int, path: str) -> Found:
    """All tensors below ``state``, what the pickle of the file at ``path`` holds.

    ``room``: how many values to look at, at most: objects may be in each other again and again.
    FormatError where there are more, or where it is no dictionary; UnsafeContentError where an
    object that nothing is known of is among weights.
    """
    if not isinstance(state, dict):
        kind = state.qualname if isinstance(state, (StandIn, Builder)) else name_kind(state)
        raise FormatError(
            f"holds a {kind}, expected a state dict",
            path=path,
            hint="Save the model's state dict: torch.save(model.state_dict(), file).",
        )
    walk = _Walk(path, room)
    walk.look_into(state, _Place("", "", 0, in_run=False))
    return walk.found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a file a dictionary or list is.

    ``start``: what names of its items begin with; ``group``: the same of the dictionary that it is,
    or lies in. ``in_run``: below a key of the run's.
    """

    start: str
    group: str
    level: int
    in_run: bool

    def enter(self, key: Any, *, is_dict: bool) -> _Place:
        start = f"{self.start}{key if isinstance(key, (str, int)) else ''}."[: MAX_NAME + 1]
        in_run = self.in_run or _matches(_RUN, key)
        return _Place(start, start if is_dict else self.group, self.level + 1, in_run)


class _Walk:
    def __init__(self, path: str, room: int) -> None:
        self._path = path
        self._room = room
        self.found = Found()

    def look_into(self, value: Any, place: _Place) -> bool:
        """Whether there is a tensor below a dictionary or list."""
        if place.level > _MOST_LEVELS:
            raise FormatError("dictionaries in each other, without end", path=self._path)
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        self._room -= len(items) + 1
        if self._room < 0:
            raise FormatError(
                "the same dictionaries in each other again and again", path=self._path
            )
        among_weights = any(_is_tensor(item) for _, item in items)
        some = among_weights
        for key, item in items:
            name = f"{place.start}{key}" if isinstance(key, (str, int)) else ""
            if _is_tensor(item):
                self._add(name, item, place.group)
            elif isinstance(item, (dict, list, tuple)):
                known = len(self.found.objects)
                inner = place.enter(key, is_dict=isinstance(item, dict))
                if self.look_into(item, inner):
                    some = True
                else:  # it is one object, whatever is in it
                    del self.found.objects[known:]
                    self._note_object(name)
            elif place.in_run or _matches(_RUN, key):
                self._note_object(name)
            else:
                self._note(name, key, item, among_weights=among_weights)
        return some

    def _add(self, name: str, value: Any, group: str) -> None:
        if not name or len(name) > MAX_NAME:
            self._report(name or self._path, "a tensor by a name that is no text, or too long")
        elif name in self.found.tensors:
            self._report(name, "two tensors of one name")
        else:
            self.found.tensors[name] = value
            self.found.groups[name] = group

    def _note(self, name: str, key: Any, value: Any, *, among_weights: bool) -> None:
        """What is no tensor and in no dictionary of the run's state."""
        is_object = isinstance(value, (StandIn, Builder))
        if is_object and among_weights:
            refuse_foreign(name, value, self._path)
            if not name.endswith("_extra_state"):
                self._report(name, f"a {name_kind(value)}, expected a tensor")
                return
        if is_object and _matches(_MODEL, key):
            self._report(
                name, f"an object of {value.qualname}; its state dict is what has to be saved"
            )
            return
        self._note_object(name)

    def _note_object(self, name: str) -> None:
        if name and len(name) <= MAX_NAME:
            self.found.objects.append(name)

    def _report(self, where: str, message: str) -> None:
        self.found.problems.append(Problem("tensor", where, message))


def _matches(pattern: re.Pattern[str], key: Any) -> bool:
    return isinstance(key, str) and len(key) <= _LONGEST and bool(pattern.fullmatch(key))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorRef) or (
        isinstance(value, StandIn) and value.kind in RankDecoder.KINDS and not value.foreign
    )
