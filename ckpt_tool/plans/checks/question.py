"""What transformers is asked about a folder of weights, and where its answer is kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ckpt_tool.common.packages import OF_TRANSFORMERS, list_missing, say_missing
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.ahead import list_ahead
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.mapping.hub.names import is_fused
from ckpt_tool.mapping.hub.saved_names import are_published
from ckpt_tool.mapping.hub.truth import drop_quantisation
from ckpt_tool.mapping.quantised import find_quantisation, is_scale
from ckpt_tool.plans.checks.cache import make_key
from ckpt_tool.plans.checks.child import Child
from ckpt_tool.plans.checks.opening import Answer, answer
from ckpt_tool.plans.checks.opening import Question as Asked
from ckpt_tool.plans.checks.wanted import Shapes
from ckpt_tool.plans.options import LoadCheck
from ckpt_tool.tensors.lazy import LazyTensor

_CHILD = "ckpt_tool.plans.checks.transformers_child"

#: Why there is nothing to be asked about weights that are packed.
PACKED = "its weights are packed, with other names and shapes than the class has"


@dataclass(frozen=True, eq=False)
class Question:
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
    def of(cls, view: View, planned: Shapes) -> Question:
        ours = list_ahead(view.config)
        read = {name: shape for name, shape in planned.items() if name not in view.ignored}
        known = {name: shape for name, shape in read.items() if not name.startswith(ours)}
        form = "published" if are_published(known, view.config) else ""
        form = "fused" if any(is_fused(name, view.config) for name in known) else form
        key = make_key(view.config.to_bytes(), view.config.architecture, form)
        return cls(view.config, known, key, len(read) - len(known), len(view.ignored))

    def ask(self) -> Asked:
        """What transformers is asked."""
        return {"config": self.config.to_bytes().decode(), "planned": self.planned}

    def passed(self, architecture: str, library: str, overlooked: int) -> LoadCheck:
        """What is said of a class that opens it, but for ``overlooked`` tensors."""
        wanted, ignored = len(self.planned) - overlooked, self.num_ignored + overlooked
        return LoadCheck(architecture, wanted, library, ignored, self.num_other_heads)


def list_questions(
    config: ModelConfig, views: Sequence[View], tensors: Mapping[str, LazyTensor]
) -> list[Question]:
    """One question for each class that shall open ``tensors``; the first is the config's own.

    fp8 weights have the names and shapes of others, with scales beside them.
    """
    quantised = find_quantisation(tensors)
    planned = {n: t.shape for n, t in tensors.items() if not (quantised and is_scale(n, tensors))}
    every = views or (View(config, frozenset()),)
    plain = [replace(view, config=drop_quantisation(view.config)) for view in every]
    return [Question.of(view, planned) for view in plain]


def ask(questions: Sequence[Question], *, may_start: bool = True) -> list[Answer] | Child:
    """What transformers answers where it is imported here; else the process that will answer.

    No answers where that process may not be started; where what it would import is not installed,
    the answer is that the class is unknown, and why.
    """
    asked = [question.ask() for question in questions]
    if "transformers" in sys.modules:
        return [answer(each) for each in asked]
    if not may_start:
        return []
    missing = list_missing(OF_TRANSFORMERS)
    if missing:
        return [{"library": "transformers", "unknown": say_missing(missing)} for _ in asked]
    return Child(_CHILD, "transformers", {"models": asked})


def hear(child: Child) -> list[Answer]:
    """What it answers, once it does, or MappingError; it is gone then."""
    try:
        return list(child.answer()["answers"])
    finally:
        child.stop()
