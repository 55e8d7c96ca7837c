"""Tensors of a layer under other names than the tables', and what that means for their rows.

Each is known by its own name, so that nothing has to be said of who wrote it.

- Norms after attention and MLP: in the linear layers that they follow (Megatron-Bridge), beside the
  layer (slime), or in attention and MLP themselves (ms-swift).
- Up projections of keys and values, apart in megatron-core's absorbed latent attention of 0.17 and
  0.18: ``absorbed_mla.py``, which still loads these.
- The gate and the norm of lightning attention in AReaL: ``models/mcore/lightning_attention.py``.
- slime's indexer: ``slime_plugins/models/glm5``, ``megatron_to_hf/deepseekv3.py`` of slime 0.2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.mapping.megatron.gated_ops import HeadRows
from ckpt_tool.mapping.megatron.halves_ops import HeadHalves
from ckpt_tool.mapping.megatron.linear import spell_kinds
from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.mapping.megatron.spelling import Sizes

#: What else follows from who stores gated DeltaNet in a way of its own: queries by head, and the
#: halves of what joins the embedding and the state that predict further.
_OF_TRAINERS = {"ms-swift": "by_head", "slime": "slime"}

_ATTENTION = "self_attention."
_INDEXER = f"{_ATTENTION}core_attention.indexer."
_KV_UP = f"{_ATTENTION}linear_kv_up_proj.weight"


@dataclass(frozen=True)
class _Spelling:
    """Names in place of one, from the layer on; ``change``: what else of a binding is another."""

    names: tuple[str, ...]
    change: Callable[[Binding, Numbers], Binding] = lambda binding, _: binding


def spell_numbers(numbers: Numbers, keys: Collection[str]) -> Numbers:
    """The kinds of layers as the trainer stores them, which tells how it stores other things."""
    kinds = spell_kinds(numbers.kinds, keys)
    said = {flag for trainer, flag in _OF_TRAINERS.items() if any(trainer in k for k in kinds)}
    return replace(numbers, kinds=kinds, flags=numbers.flags | said)


def respell(binding: Binding, numbers: Numbers, keys: Collection[str]) -> Binding:
    """The binding to what ``keys`` have in place of its one tensor, where they have not that."""
    name = binding.names[0]
    if name in keys:
        return binding
    for end, spellings in _SPELLINGS.items():
        stem = name.removesuffix(end)
        for spelling in spellings if stem != name else ():
            names = tuple(stem + other for other in spelling.names)
            if all(other in keys for other in names):
                return replace(spelling.change(binding, numbers), names=names)
    return binding


def _part_heads(binding: Binding, numbers: Numbers) -> Binding:
    """Of each head its keys' rows, and then its values'."""
    heads, sizes = numbers.heads, numbers.sizes
    values, rank = sizes["latent_out"], sizes["kv_rank"]
    keys = sizes["kv_up"] - values
    wholes: tuple[Sizes, ...] = ((keys, rank), (values, rank))
    return replace(binding, op=HeadRows((keys // heads, values // heads), heads), wholes=wholes)


def _exchange_halves(binding: Binding, numbers: Numbers) -> Binding:
    sizes = numbers.sizes
    turned = sizes["kv_down"] - sizes["kv_rank"]
    return replace(binding, op=HeadHalves(sizes["index_head"], turned))


def _list_alike(*names: str) -> dict[str, tuple[_Spelling, ...]]:
    """Each name, and the others in place of it."""
    return {
        name: tuple(_Spelling((other,)) for other in names if other != name) for name in names[:2]
    }


#: Ends of the tables' names, and what may be in place of them.
_SPELLINGS: dict[str, tuple[_Spelling, ...]] = {
    _KV_UP: (
        _Spelling(
            (f"{_ATTENTION}linear_k_up_proj.weight", f"{_ATTENTION}linear_v_up_proj.weight"),
            _part_heads,
        ),
    ),
    **_list_alike(
        f"{_ATTENTION}linear_proj.post_layernorm.weight",
        "post_self_attn_layernorm.weight",
        f"{_ATTENTION}post_self_attn_layernorm.weight",
    ),
    **_list_alike(
        "mlp.linear_fc2.post_layernorm.weight",
        "post_mlp_layernorm.weight",
        "mlp.post_mlp_layernorm.weight",
    ),
    f"{_ATTENTION}g_proj.weight": (_Spelling((f"{_ATTENTION}linear_gate.weight",)),),
    f"{_ATTENTION}g_norm.weight": (_Spelling((f"{_ATTENTION}gate_norm.weight",)),),
    **{
        f"{_INDEXER}{ours}": (_Spelling((f"{_ATTENTION}{theirs}",), _exchange_halves),)
        for ours, theirs in {
            "linear_wq_b.weight": "wq_b.weight",
            "linear_wk.weight": "wk.weight",
            "k_norm.weight": "k_norm.weight",
            "k_norm.bias": "k_norm.bias",
        }.items()
    },
    f"{_INDEXER}linear_weights_proj.weight": (_Spelling((f"{_ATTENTION}weights_proj.weight",)),),
}
