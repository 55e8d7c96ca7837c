"""``check_load`` of a merge: what is written is the model that the config says, whole.

What a class wants is looked up in the user's cache. Where it is not there, transformers is asked
(:mod:`ckpt_tool.plans.checks.opening`): here where it is imported already, else in a process of its
own, while the bytes are moved; or it was asked before, because a cast depends on it
(:mod:`ckpt_tool.plans.checks.dtypes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.plans.checks.cache import keep_wanted, make_wanted, read_wanted
from ckpt_tool.plans.checks.child import Child
from ckpt_tool.plans.checks.judge import Judge, Verdict, say_unheld
from ckpt_tool.plans.checks.opening import Answer
from ckpt_tool.plans.checks.question import Question, ask, hear
from ckpt_tool.plans.options import LoadCheck

_UNCHECKED = "write the model unchecked with `write.check_load=False`."


class TransformersJudge(Judge):
    """Whether the class of each of ``questions`` opens what is planned; the first is config.json's.

    ``must``: it is an error where nobody can say. ``heard``: what was answered before, by key.
    """

    name = "transformers"
    is_early = True

    def __init__(
        self, questions: Sequence[Question], heard: Mapping[str, Answer], *, must: bool
    ) -> None:
        self._must = must
        self._heard = heard
        self._questions = questions
        self._checks: dict[int, LoadCheck] = {}
        self._warnings: list[str] = []
        self._child: Child | None = None
        self._asked: Sequence[Question] = ()
        self._lock = Lock()

    def start(self) -> None:
        """Look it up, and ask where that does not settle it.

        Raises what :meth:`finish` does where the answer is there before a byte is written.
        """
        for index, question in enumerate(self._questions):
            found = read_wanted(question.key)
            if found is not None:
                _require_whole(
                    question.config, found.architecture, found.list_faults(question.planned)
                )
                overlooked = found.count_overlooked(question.planned)
                passed = question.passed(found.architecture, found.library, overlooked)
                self._checks[index] = passed
        known = [each for each in self._open() if each.key in self._heard]
        self._hear((each, self._heard[each.key]) for each in known)
        asked = [each for each in self._open() if each not in known]
        found_now = ask(asked) if asked else []
        if isinstance(found_now, Child):
            self._child, self._asked = found_now, asked
        else:
            self._hear(zip(asked, found_now, strict=True))

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

    def _open(self) -> list[Question]:
        return [each for index, each in enumerate(self._questions) if index not in self._checks]

    def _hear_child(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            self._hear(zip(self._asked, hear(child), strict=True))

    def _hear(self, answers: Iterable[tuple[Question, Answer]]) -> None:
        """Take what was answered."""
        for question, found in answers:
            unknown = found.get("unknown")
            if unknown is None:
                _require_answer(question.config, found)
                _require_whole(question.config, found["architecture"], found["faults"])
                if found["wanted"] is not None:
                    keep_wanted(question.key, make_wanted(found["wanted"]))
                index = self._questions.index(question)
                said = (found["architecture"], found["library"], found["overlooked"])
                self._checks[index] = question.passed(*said)
            elif self._must:
                raise UsageError(f"`write.check_load`: {unknown}", hint=_WITHOUT_CLASS)
            else:
                self._warnings.append(say_unheld(unknown))


_WITHOUT_CLASS = f"Install a transformers that knows the model, or {_UNCHECKED}"


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


def _require_whole(config: ModelConfig, architecture: str, faults: Sequence[str]) -> None:
    """MappingError that lists the faults, if there are any."""
    if faults:
        raise MappingError(
            f"`write.check_load`: {config.path} says {architecture}, and these tensors are not"
            " those that it loads",
            faults,
            hint=_advise(faults),
        )


def _advise(faults: Sequence[str]) -> str:
    """What may be done: of names that are all below one more, to say so."""
    missing, extra = (_list_names(faults, kind) for kind in ("missing", "unexpected"))
    prefix = _find_prefix(missing, extra)
    if prefix:
        return f"All that is missing is below {prefix}: take that with `names.prefix={prefix!r}`."
    filled = ", or with `fill_from=BASE` the model that has what is missing" if missing else ""
    return f"Name the config of these weights with `config=DIR`{filled}, or {_UNCHECKED}"


def _list_names(faults: Sequence[str], kind: str) -> set[str]:
    start = f"{kind}: "
    return {each.removeprefix(start).split(" ")[0] for each in faults if each.startswith(start)}


def _find_prefix(missing: set[str], extra: set[str]) -> str:
    """What all names that are missing have before them among those that are too many."""
    if not missing:
        return ""
    one = min(missing)
    starts = (name[: -len(one) - 1] for name in sorted(extra) if name.endswith(f".{one}"))
    return next((s for s in starts if all(f"{s}.{name}" in extra for name in missing)), "")
