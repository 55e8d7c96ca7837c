"""``check_load`` of a merge: what is written is the model that the config says, whole.

What a class wants is looked up in the user's cache. Where it is not there, transformers is asked
(:mod:`ckpt_tool.plans.checks.opening`): here where it is imported already, else in a process of its
own, while the bytes are moved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.mapping.hub.names import is_fused
from ckpt_tool.plans.checks.cache import keep_wanted, make_key, make_wanted, read_wanted
from ckpt_tool.plans.checks.child import Child
from ckpt_tool.plans.checks.judge import Judge, Verdict, say_unheld
from ckpt_tool.plans.checks.opening import Answer, Question, answer
from ckpt_tool.plans.checks.wanted import Shapes
from ckpt_tool.plans.options import LoadCheck

_CHILD = "ckpt_tool.plans.checks.transformers_child"
_UNCHECKED = "write the model unchecked with `write.check_load=False`."


class TransformersJudge(Judge):
    """Whether each of ``views`` opens what is ``planned``; the first is config.json's own class.

    ``must``: it is an error where nobody can say.
    """

    name = "transformers"
    is_early = True

    def __init__(self, views: Sequence[View], planned: Shapes, *, must: bool) -> None:
        self._must = must
        self._questions = [_Question.of(view, planned) for view in views]
        self._checks: dict[int, LoadCheck] = {}
        self._warnings: list[str] = []
        self._child: Child | None = None
        self._lock = Lock()

    def start(self) -> None:
        """Look it up, and ask where that does not settle it.

        Raises what :meth:`finish` does where the answer is there before a byte is written.
        """
        for index, question in enumerate(self._questions):
            found = read_wanted(question.key)
            if found is not None:
                _require_whole(found.architecture, found.list_faults(question.planned))
                self._checks[index] = question.passed(found.architecture, found.library)
        asked = [each.ask() for each in self._open()]
        if asked and "transformers" in sys.modules:
            self._hear([answer(question) for question in asked])
        elif asked:
            self._child = Child(_CHILD, "transformers", {"models": asked})

    def finish(self, folder: Path | None) -> Verdict:
        """MappingError lists what is missing, too many or misshapen.

        MappingError, too, where transformers cannot be imported or build the model. Where it does
        not know the class: a warning, or UsageError if it ``must``.
        """
        self._hear_child()
        if len(self._checks) < len(self._questions):
            return Verdict(None, tuple(self._warnings))
        first, *more = (self._checks[index] for index in sorted(self._checks))
        return Verdict(replace(first, also=tuple(check.architecture for check in more)))

    def listen(self) -> None:
        """Raise what is wrong once transformers has answered: no need to write the rest."""
        if self._child is not None and self._child.is_done:
            self._hear_child()

    @property
    def is_waited_for(self) -> bool:
        """Whether transformers was asked and has not answered."""
        return self._child is not None and not self._child.is_done

    def stop(self) -> None:
        """End the process that was asked."""
        if self._child is not None:
            self._child.stop()

    def _open(self) -> list[_Question]:
        return [each for index, each in enumerate(self._questions) if index not in self._checks]

    def _hear_child(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            try:
                self._hear(child.answer()["answers"])
            finally:
                child.stop()

    def _hear(self, answers: Sequence[Answer]) -> None:
        """Take what was answered to the questions that are open."""
        for question, found in zip(self._open(), answers, strict=True):
            unknown = found.get("unknown")
            if unknown is None:
                _require_answer(question.config, found)
                _require_whole(found["architecture"], found["faults"])
                if found["wanted"] is not None:
                    keep_wanted(question.key, make_wanted(found["wanted"]))
                index = self._questions.index(question)
                self._checks[index] = question.passed(found["architecture"], found["library"])
            elif self._must:
                raise UsageError(f"`write.check_load`: {unknown}", hint=_WITHOUT_CLASS)
            else:
                self._warnings.append(say_unheld(unknown))


_WITHOUT_CLASS = f"Install a transformers that knows the model, or {_UNCHECKED}"


@dataclass(frozen=True, eq=False)
class _Question:
    """A class, and what it would be given to open.

    ``num_ignored``: what no class has a place for; ``num_other_heads``: what another class of the
    same files reads.
    """

    config: ModelConfig
    planned: Shapes
    key: str
    num_ignored: int
    num_other_heads: int

    @classmethod
    def of(cls, view: View, planned: Shapes) -> _Question:
        ours = _name_prediction_layers(view.config)
        read = {name: shape for name, shape in planned.items() if name not in view.ignored}
        known = {name: shape for name, shape in read.items() if not name.startswith(ours)}
        form = "fused" if any(is_fused(name, view.config) for name in known) else ""
        key = make_key(view.config.to_bytes(), view.config.architecture, form)
        return cls(view.config, known, key, len(read) - len(known), len(view.ignored))

    def ask(self) -> Question:
        """What transformers is asked."""
        return {"config": self.config.to_bytes().decode(), "planned": self.planned}

    def passed(self, architecture: str, library: str) -> LoadCheck:
        """What is said of a class that opens it."""
        return LoadCheck(
            architecture, len(self.planned), library, self.num_ignored, self.num_other_heads
        )


def _name_prediction_layers(config: ModelConfig) -> tuple[str, ...]:
    """Where the layers for multi-token prediction are: behind the last one that a model has."""
    layers, more = (
        config.text.get(key) for key in ("num_hidden_layers", "num_nextn_predict_layers")
    )
    if not isinstance(layers, int) or not isinstance(more, int):
        return ()
    return tuple(f"model.layers.{layers + number}." for number in range(more))


def _require_answer(config: ModelConfig, answer: Answer) -> None:
    """MappingError where nothing can be said of the model."""
    library = answer["library"]
    if "broken" in answer:
        raise MappingError(
            f"`write.check_load`: transformers cannot be imported: {answer['broken']}",
            hint=f"Mend the installation, or {_UNCHECKED}",
        )
    if "unusable" in answer:
        raise MappingError(
            f"`write.check_load`: {library} cannot build {config.architecture}:"
            f" {answer['unusable']}",
            hint=f"Install what is missing, or correct config.json, or {_UNCHECKED}",
        )


def _require_whole(architecture: str, faults: Sequence[str]) -> None:
    """MappingError that lists the faults, if there are any."""
    if faults:
        raise MappingError(
            f"`write.check_load`: config.json says {architecture}, and these tensors are not those"
            " that it loads",
            faults,
            hint="Name the config of these weights with `config=DIR`, or with `fill_from=BASE` the"
            f" model that has what is missing, or {_UNCHECKED}",
        )
