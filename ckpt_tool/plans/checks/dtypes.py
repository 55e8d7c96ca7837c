"""In which dtypes a class holds its weights: those that ``save_pretrained`` would write.

Others than its config names are float32, where the class creates a weight so or has transformers
keep it so. Who casts has to know before a byte is planned. It is looked up where the load check
keeps what classes want; else transformers is asked what the load check would ask it, and the answer
is handed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckpt_tool.common.progress import Progress
from ckpt_tool.mapping.casting import hold_known
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.plans.checks.cache import keep_wanted, make_wanted, read_wanted
from ckpt_tool.plans.checks.child import Child
from ckpt_tool.plans.checks.opening import Answer
from ckpt_tool.plans.checks.question import Question, ask, hear
from ckpt_tool.tensors.dtypes import BY_NAME, CASTABLE, DType

#: A weight of a layer, by what it is called there.
_LAYER = re.compile(r"\.layers\.\d+\.(.+)$")


@dataclass(frozen=True)
class Held:
    """``dtypes``: of weights that their class holds in another one than its config names, by name.

    ``heard``: what transformers was asked on the way, by key. ``warnings``: that nobody could say.
    """

    dtypes: Mapping[str, DType] = field(default_factory=dict)
    heard: Mapping[str, Answer] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def find_dtypes(
    question: Question, names: Sequence[str], progress: Progress, *, may_start: bool
) -> Held:
    """In which dtypes the class that ``question`` is about holds the tensors ``names``.

    ``may_start``: a process may be started to find out, and is waited for. Where nobody can say
    (transformers is not there, or does not know the class, or the class does not open the tensors),
    only what is known without asking. MappingError where that process does not answer.
    """
    known = hold_known((name for name in names if name not in question.planned), question.config)
    routers = hold_known(names, question.config)
    kept = read_wanted(question.key)
    if kept is not None:
        return Held(known | _spread(_make_dtypes(kept.dtypes), routers))
    found = _ask(question, progress, may_start=may_start)
    reason = _find_reason(found)
    if reason:
        heard = {question.key: found} if found else {}
        return replace(hold_unknown(names, question.config, reason), heard=heard)
    if found["wanted"] is not None:
        keep_wanted(question.key, make_wanted(found["wanted"]))
    return Held(known | _spread(_make_dtypes(found["dtypes"]), routers), {question.key: found})


def _spread(held: Mapping[str, DType], routers: Iterable[str]) -> dict[str, DType]:
    """``held``, and of biases of ``routers`` those that other layers hold too.

    A class leaves layers for multi-token prediction out, and says nothing of theirs.
    """
    within = {matched[1]: held[name] for name in held if (matched := _LAYER.search(name))}
    alike = {name: matched[1] for name in routers if (matched := _LAYER.search(name))}
    return {name: within[end] for name, end in alike.items() if end in within} | dict(held)


def hold_unknown(names: Iterable[str], config: ModelConfig, reason: str) -> Held:
    """What is known without asking, and a warning: nobody says the rest, for this ``reason``."""
    said = (
        f"nobody says which weights of {config.architecture or 'the model'} stay float32"
        f" ({reason}): of those that are cast only the biases of routers do"
    )
    return Held(hold_known(names, config), warnings=(said,))


def _ask(question: Question, progress: Progress, *, may_start: bool) -> Answer:
    """What transformers answers; nothing where that would take a process that may not be."""
    found = ask([question], may_start=may_start)
    if isinstance(found, Child):
        progress.start("waiting for transformers: what stays float32", None)
        found = hear(found)
    return found[0] if found else {}


def _find_reason(found: Answer) -> str:
    """Why an answer says nothing of dtypes; empty where it does."""
    if not found:
        return "transformers was not asked, with `write.check_load=False`"
    if "broken" in found:
        return f"transformers cannot be imported: {found['broken']}"
    if "unusable" in found:
        return f"{found['library']} cannot build it: {found['unusable']}"
    return found.get("unknown") or ("these are not its tensors" if found["faults"] else "")


def _make_dtypes(said: Mapping[str, str]) -> dict[str, DType]:
    """Dtypes by their names, where they are such that weights can be cast to."""
    found = {name: BY_NAME[dtype] for name, dtype in said.items() if dtype in BY_NAME}
    return {name: dtype for name, dtype in found.items() if dtype in CASTABLE}
