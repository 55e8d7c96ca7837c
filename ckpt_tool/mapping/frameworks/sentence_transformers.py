"""State dicts of sentence-transformers: a list of modules, of which the first is the transformer.

``0.auto_model.<name>`` (before release 5) or ``0.model.<name>`` are the transformer's parameters;
``2.linear.weight`` and the like are other modules', which lie in folders of their own
(``2_Dense/model.safetensors``) and not in the model's files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun

T = TypeVar("T")

_TRANSFORMER = re.compile(r"^((?:[A-Za-z_]\w*\.)*)0\.(?:auto_model|model)\.")


def take_transformer(tensors: Mapping[str, T]) -> dict[str, T]:
    """The transformer's tensors by its own names; other tensors as they are.

    Dictionaries may be nested around the list. MappingError lists weights of other modules in it.
    """
    first = next(filter(None, map(_TRANSFORMER.match, tensors)), None)
    if first is None:
        return dict(tensors)
    start, module = first[0], re.compile(rf"{re.escape(first[1])}\d+\.")
    if not all(map(module.match, tensors)):
        return dict(tensors)
    others = [name for name in tensors if not name.startswith(start)]
    if others:
        raise MappingError(
            f"a model of sentence-transformers with {count_noun(len(others), 'tensor')} of modules"
            " beside the transformer, which have files of their own",
            others,
            hint=f"Take the transformer alone with `names.select=['{start}*']`, and save the others"
            " with sentence-transformers.",
        )
    return {name.removeprefix(start): tensor for name, tensor in tensors.items()}
