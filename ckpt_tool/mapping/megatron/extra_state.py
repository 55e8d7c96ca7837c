"""The ``_extra_state`` entries that megatron-core's loader asks for.

Every Transformer-Engine module saves one (its fp8 scales; None without fp8), under
``<module>._extra_state/shard_<index>_<extent>``, and a strict load fails where one is missing.
Which modules have one depends on the release (attention itself up to 0.14; norms only under
Transformer Engine), so all that any release asks for are listed: a loader ignores what it did not
ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.tensors.geometry import Shape

#: Modules with a weight and without extra state: plain parameters, and the vocabulary's layers.
_WITHOUT = (
    "router",
    "conv1d",
    "mixer.norm",
    "word_embeddings",
    "output_layer",
    "patch_embed.proj",
    "pos_embed",
)
#: What one tensor of a module is in several keys.
_PART = re.compile(r"(?<=\.weight)\.\w+$")
#: How names of modules' parameters end; of those that are stored in parts, the norm's before them.
_WEIGHTS = ("weight", "layer_norm_weight")
_HYBRID_NORM = "decoder.final_norm"


def list_extra_states(bindings: Iterable[Binding], *, hybrid: bool = False) -> list[str]:
    """The keys, without repetition, in the order of the modules; of a ``hybrid`` model too.

    That asks for the state of its head, be it tied or not; a GPTModel leaves it out.
    """
    keys: dict[str, None] = {}
    own = (each for each in bindings if not each.foreign)
    for binding, name in ((each, name) for each in own for name in each.names):
        module, _, kind = _PART.sub("", name).rpartition(".")
        if kind not in _WEIGHTS or module.endswith(_WITHOUT):
            continue
        keys |= dict.fromkeys(_make_keys(module, binding))
        if module.endswith("self_attention.linear_proj"):
            attention = module.removesuffix("linear_proj") + "core_attention"
            keys[_make_key(attention, binding.index, binding.extent)] = None
        if hybrid and module.endswith(_HYBRID_NORM):
            head = module.removesuffix(_HYBRID_NORM) + "output_layer"
            keys[_make_key(head, binding.index, binding.extent)] = None
    return list(keys)


def _make_keys(module: str, binding: Binding) -> Iterator[str]:
    """That of a module, or of each expert's."""
    if not binding.experts:
        yield _make_key(module, binding.index, binding.extent)
    for expert in range(binding.experts):
        extent = (*binding.extent, binding.experts)
        yield _make_key(module, (*binding.index, expert), extent)


def _make_key(module: str, index: Shape, extent: Shape) -> str:
    where = ".".join(map(str, index or (0,)))
    return f"{module}._extra_state/shard_{where}_{'.'.join(map(str, extent or (1,)))}"
