"""Which weights of a merge stay in another dtype than the one that the model is cast to."""

from __future__ import annotations

from ckpt_tool.common.progress import Progress
from ckpt_tool.mapping.casting import choose_dtype, hold_known, list_cast
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.quantised import find_quantisation
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.checks.dtypes import Held, find_dtypes, hold_unknown
from ckpt_tool.plans.checks.question import PACKED, list_questions
from ckpt_tool.tensors.dtypes import FLOAT32


def settle_dtypes(model: HubModel, options: MergeOptions, progress: Progress) -> Held:
    """What the class of ``model``, by its names on the Hub, holds otherwise than ``dtype`` says.

    Nobody is asked where nothing is cast to fewer bits, or the family's row says it; transformers
    is, where it does not. ``progress`` is told when it has to be waited for.
    """
    config, target = model.config, choose_dtype(options.dtype, model.config)
    names = list_cast(model.tensors, target, config)
    if config is None or target == FLOAT32 or not names:
        return Held()
    if config.family.known_float32 is not None:
        return Held(hold_known(names, config))
    if find_quantisation(model.tensors) == "packed":
        return hold_unknown(names, config, PACKED)
    named = model.with_dtype(target)
    first, *_ = list_questions(named.config or config, named.views, model.tensors)
    may_start = options.write.check_load is not False
    return find_dtypes(first, names, progress, may_start=may_start)
