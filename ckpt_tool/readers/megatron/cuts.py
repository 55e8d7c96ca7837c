"""How Megatron's tensor parallelism cuts each parameter: pure geometry.

Column-parallel layers are cut along their outputs (dimension 0), row-parallel ones along their
inputs (dimension 1); the first layer of a gated MLP is cut within gate and within up, so that a
rank has a piece of each. All else is on every rank. Sources: ``megatron/core/tensor_parallel/
layers.py``, and the ``sharded_state_dict`` of attention, MLP, embedding and gated DeltaNet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckpt_tool.readers.megatron.mixers import find_mixer_dim, find_sections
from ckpt_tool.tensors.geometry import Box, Shape

_COLUMN = re.compile(
    r"(^|\.)(linear_qkv|linear_q_proj|linear_q_up_proj|linear_(?:kv|k|v)_up_proj|linear_fc1|eh_proj"
    r"|gate_up_proj|e_proj|h_proj)\.(weight|bias)$"
    r"|(^|\.)(word_embeddings|output_layer|embed_tokens|lm_head|multi_modal_projector\.proj)\.weight$"
    r"|(^|\.)per_layer_(embedding|model_proj)\.weight$"  # of Gemma 4
    r"|(^|\.)vision_model\.(video_)?embedder\.weight$"  # of RADIO
    r"|(^|\.)core_attention\.(softmax_offset|attn_sink)$"  # a sink for each head
    r"|(^|\.)self_attention\.(g_proj|linear_gate|gate_norm)\.weight$"  # lightning attention
    r"|(^|\.)self_attention\.((in_proj|conv1d)\.weight\.\w+|A_log|dt_bias)$"  # gated DeltaNet
)
_ROW = re.compile(
    r"(^|\.)(linear_proj|linear_fc2|o_proj|down_proj|self_attention\.out_proj)\.weight$"
)
#: verl 0.3's: query, key and value heads of a rank, so that cutting the whole is no cut at all.
_RANKS_OWN = re.compile(r"(^|\.)self_attn\.qkv_proj\.(weight|bias)$")
#: Modules of transformers, which every rank has whole: towers of Megatron-Bridge and of ms-swift;
#: the projector of Gemma 3 it brings itself.
_TOWER = re.compile(
    r"^(?:(?:module|model)\.)*(?:thinker\.|llava_model\.)?(?:visual|vision_tower|audio_tower"
    r"|audio_model|sound_model|multi_modal_projector(?!\.proj\.weight$)|mm_projector|mlp1"
    r"|vision_model\.(?:encoder|model|vision_adapter))\."
)
_FIRST = re.compile(r"(linear_fc1|gate_up_proj)\.(weight|bias)$")
_SECOND = {"linear_fc1": "linear_fc2", "gate_up_proj": "down_proj"}
#: Of Megatron-Bridge's LoRA: A is cut as its layer's inputs or along its rank, B along its outputs.
_ADAPTER = re.compile(r"(^|\.)(?P<layer>[^.]+)\.adapter\.linear_(?P<part>in|out)\.weight$")
_DOWN = re.compile(r"linear_(q|kv)_down_proj\.weight$")


@dataclass(frozen=True, slots=True)
class Cut:
    """Along which dimension ranks share a tensor, None where each has all of it.

    ``halves``: a rank has a piece of the first half and one of the second. ``sections``: it has
    one of each of several parts, of so many rows. ``stacked``: what ranks have is no piece of a
    whole, only one after the other along a dimension of their own.
    """

    dim: int | None
    halves: bool = False
    stacked: bool = False
    sections: tuple[int, ...] = ()

    def whole(self, local: Shape, parts: int) -> Shape:
        """The global shape of a tensor whose ``parts`` ranks have ``local`` each."""
        if self.stacked:
            return (parts, *local)
        if self.dim is None:
            return local
        return (*local[: self.dim], local[self.dim] * parts, *local[self.dim + 1 :])

    def pieces(self, local: Shape, part: int, parts: int) -> Iterator[tuple[int, Box]]:
        """Where a rank's tensor lies in the whole: first index along ``dim`` of it, and the box."""
        zeros = (0,) * len(local)
        if self.stacked:
            yield 0, Box((part, *zeros), (1, *local))
            return
        if self.dim is None:
            yield 0, Box(zeros, local)
            return
        dim = self.dim
        half = local[dim] // 2
        at = 0
        for length in self.sections or ((half, half) if self.halves else (local[dim],)):
            offsets = (*zeros[:dim], at * parts + part * length, *zeros[dim + 1 :])
            yield at, Box(offsets, (*local[:dim], length, *local[dim + 1 :]))
            at += length

    def text(self, leading: int = 0) -> str:
        """As a placement, in a tensor that has ``leading`` dimensions before this one's."""
        if self.stacked:
            return "stacked"
        if self.dim is None:
            return "replicated"
        kind = f", {len(self.sections)} parts" if self.sections else ""
        return f"Shard({self.dim + leading}){', gated' if self.halves else kind}"


WHOLE = Cut(None)
STACKED = Cut(None, stacked=True)


def find_cut(name: str, shapes: Mapping[str, Shape]) -> Cut:
    """How the parameter ``name`` is cut; ``shapes``: the local shapes of what is beside it."""
    adapter = _ADAPTER.search(name)
    if adapter is not None:
        return _adapter(name, adapter, shapes)
    if _RANKS_OWN.search(name):
        return STACKED
    mixer = find_mixer_dim(name)
    if mixer is not None and len(shapes[name]) > mixer:
        return Cut(mixer, sections=find_sections(name, shapes))
    return _latent_down(name, shapes) if _DOWN.search(name) else _layer(name, shapes)


def _layer(name: str, shapes: Mapping[str, Shape]) -> Cut:
    """A linear layer that is cut along its outputs or its inputs; anything else is whole."""
    shape, tower = shapes[name], _TOWER.match(name)
    if _ROW.search(name) and len(shape) == 2 and not tower:
        return Cut(1)
    if tower or not _COLUMN.search(name) or not shape or _is_value_head(name, shape):
        return WHOLE
    return Cut(0, halves=_is_gated(name, shapes))


def _adapter(name: str, found: re.Match[str], shapes: Mapping[str, Shape]) -> Cut:
    """A factor of a LoRA adapter; B [out, r] has all of the rank, so that A's rows tell the cut.

    Source: ``megatron/bridge/peft/utils.py`` (ParallelLinearAdapter).
    """
    if found["part"] == "out":
        stem, layer = name[: found.start("layer")], found["layer"]
        if layer == "in_proj":  # a mixer's, as that is cut
            rows = {f"{stem}in_proj.weight": shapes[name]}
            return Cut(0, sections=find_sections(f"{stem}in_proj.weight", {**shapes, **rows}))
        return Cut(0, halves=layer == "linear_fc1" and not _is_ungated(name, stem, shapes))
    other = shapes.get(name.removesuffix("linear_in.weight") + "linear_out.weight")
    if other is None or len(other) != 2 or len(shapes[name]) != 2:
        return WHOLE
    return Cut(1) if shapes[name][0] == other[1] else Cut(0)


def _is_ungated(name: str, stem: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether what is beside the B of a first layer says that there is one number for each input.

    That is the second layer, or the A of its adapter.
    """
    beside = (f"{stem}linear_fc2{end}.weight" for end in ("", ".to_wrap", ".adapter.linear_in"))
    second = next((shapes[each] for each in beside if len(shapes.get(each, ())) == 2), None)
    return second is not None and shapes[name][:1] == second[1:]


def _is_value_head(name: str, shape: Shape) -> bool:
    """One row that scores in place of a vocabulary: every rank has it."""
    return shape[0] == 1 and name.endswith(("output_layer.weight", "lm_head.weight"))


def _is_gated(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a first layer makes two numbers for each one that the second layer takes."""
    matched = _FIRST.search(name)
    if matched is None:
        return False
    if matched[1] == "gate_up_proj":
        return True
    second = shapes.get(f"{name[: matched.start()]}{_SECOND[matched[1]]}.weight")
    return second is not None and len(second) == 2 and shapes[name][0] == 2 * second[1]


def _latent_down(name: str, shapes: Mapping[str, Shape]) -> Cut:
    """Latent attention's down projections: cut by older layers, whole on every rank in newer ones.

    What the up projection takes says how many rows there are: of the keys' and values' some more,
    for the rotary part.
    """
    ups = (name.replace("_down_proj.", "_up_proj."), name.replace("_kv_down_proj.", "_k_up_proj."))
    # Absorbed attention of 0.17 and 0.18 has those of keys and values apart.
    up = next((shapes[each] for each in ups if each != name and each in shapes), None)
    if up is None or len(up) != 2 or not shapes[name]:
        return WHOLE
    return WHOLE if shapes[name][0] >= up[1] else Cut(0)
