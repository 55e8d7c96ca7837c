"""What a family is made of in megatron-core: the forms of a row, of a tower, and of it all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """Hugging Face's tensors, megatron-core's, and how the ones become the others.

    ``op``: one of those in :mod:`ckpt_tool.mapping.megatron.spelling`.
    ``dtype``: the dtype that Megatron keeps the tensor in whatever the weights are, if it does.
    ``shape``: of Hugging Face's tensors, in the words of :mod:`ckpt_tool.mapping.megatron.numbers`;
    one for each, or one for all. ``whole``: likewise of megatron-core's; empty where it is made of
    all the rows, one after the other.
    """

    hf: str
    megatron: str
    op: str = "same"
    when: str = ""
    dtype: str = ""
    shape: str = ""
    whole: str = ""

    @property
    def is_each(self) -> bool:
        """Whether it is one of each expert: ``{e}``, or, of a second pool, ``{E+e}``."""
        return "{e}" in self.hf or "{E+e}" in self.hf


Rows = tuple[Row, ...]
Flag = Literal[True] | tuple[str, bool] | tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower: rows outside of its blocks, rows of each block, and of each merger.

    ``prefix``: of all of it on the Hub. ``always``: it is in every checkpoint, whatever towers the
    family has beside it, and its config names an architecture of RADIO.
    """

    rows: Rows
    block: Rows
    merger: Rows = ()
    prefix: str = "visual."
    always: bool = False

    @property
    def projects(self) -> bool:
        """Whether the blocks end with a norm, and two layers of megatron-core's own after it."""
        return any(row.megatron.startswith("vision_model.projection.") for row in self.rows)

    @property
    def gated(self) -> bool:
        """Whether the MLP of a block has a gate; then there are norms without bias too."""
        return any(row.op == "gate_up" for row in self.block)


@dataclass(frozen=True, slots=True)
class Ahead:
    """Layers for multi-token prediction: what they have beside attention and MLP, and where.

    ``rows``: what is before such a layer and after it; none: a family has no such layers.
    ``prefix`` is that of one on the Hub, with its ``number``, or how many layers it comes
    ``after``; ``repeats``: it has copies of the embedding and the head there, ``copies``: what they
    are called; ``top``: before the names of ``rows`` where these are not below a layer, but the
    same for all. ``dense``: rows in place of the family's there. ``end``: what a layer ends with,
    where it is several on the Hub; ``rows`` is then what it begins with.
    """

    rows: Rows = ()
    prefix: str = "model.layers.{after}."
    repeats: bool = True
    copies: tuple[str, str] = ("embed_tokens.weight", "shared_head.head.weight")
    top: str = ""
    dense: Rows = ()
    end: Rows = ()


@dataclass(frozen=True, slots=True)
class Around:
    """What is around the layers of a language model: prefixes on both sides, towers, the rest.

    ``trunk`` is before the names of the language model on the Hub, ``head`` before that of its
    head; ``ends``: what the rows outside of layers are called on the Hub, where that is otherwise.
    ``outside`` is before all names in Megatron.
    ``towers``: prefixes below which tensors are the same on both sides, those of modules that a
    trainer takes from transformers. Of a family with ``vision`` too, checkpoints have either;
    written is ``vision`` where it is ``native``, Megatron-Bridge's own form. ``moved``: what
    Megatron has in place of such a prefix, where that is another; ``towers_by``: the part of the
    config without which there is no such tower, where that is so. ``beside``: rows of modules
    beside the layers, by their whole names on both sides. ``absent``: prefixes of what is on the
    Hub and in no model of Megatron's, or, with a dot before it, part of its names. ``inner``: the
    layers' rows are those of the model type that the language model's own config names. ``part``: a
    key that the config of such a model has; without it there is ``other`` around. ``saved``:
    regular expressions in names as transformers saves them, and what it is in those that the rows
    have, where the two differ.
    """

    trunk: str = "model."
    head: str = ""
    ends: dict[str, str] = field(default_factory=dict)
    outside: str = ""
    vision: Vision | None = None
    towers: tuple[str, ...] = ()
    moved: dict[str, str] = field(default_factory=dict)
    towers_by: dict[str, str] = field(default_factory=dict)
    native: bool = False
    beside: Rows = ()
    absent: tuple[str, ...] = ()
    inner: bool = False
    part: str = ""
    other: Around | None = None
    saved: tuple[tuple[str, str], ...] = ()

    def lacks(self, name: str) -> bool:
        """Whether no model of Megatron's has a tensor with this name on the Hub."""
        inner = (part for part in self.absent if part.startswith("."))
        return name.startswith(self.absent) or any(part in name for part in inner)

    @property
    def sees(self) -> bool:
        """Whether there is more than a language model."""
        return self.vision is not None or bool(self.towers)

    @property
    def has_radio(self) -> bool:
        """Whether the tower that has rows is in every checkpoint."""
        return self.vision is not None and self.vision.always

    @property
    def prefix(self) -> str:
        """What is before the names of Megatron's language model."""
        return f"{self.outside}language_model." if self.sees else ""

    @property
    def megatron_towers(self) -> tuple[str, ...]:
        """What is before the names of the towers' tensors in Megatron, one for each of these."""
        return tuple(self.moved.get(tower, tower) for tower in self.towers)

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """What is before the names of what is no part of the model that is built to load it."""
        always = ("vision_model.", "vision_projection.", "sound_") if self.has_radio else ()
        return self.megatron_towers + tuple(self.outside + name for name in always)


@dataclass(frozen=True, slots=True)
class MegatronRows:
    """The rows of a family's layers; those outside of layers are the same for all.

    ``mtp``: its layers for multi-token prediction; ``around``: what is around all layers.
    ``attentions``: rows in place of ``attention``, by the kinds of layers that ``layer_types`` of
    the config has; ``mtp`` is the kind of layers for multi-token prediction. Of a family with the
    flag ``patterned`` a layer is one of a HybridModel, that is attention or Mamba or an MLP, and
    its kind the symbol that it has there. ``kinds_by``: what says the kinds of layers, where
    ``layer_types`` does not. ``apart``: rows that layers of a kind have more, and Megatron
    elsewhere, by whole names with the number of the ``layer``.
    ``flags``: True, or the config key that decides, or two names of it, and what holds where the
    key is absent.
    ``differing``: Megatron is always given a list of layer kinds, so that layers have keys of
    their own even where all are alike. ``defaults``: numbers that the config's class has where
    ``config.json`` leaves them out, by every name that they have.
    """

    attention: Rows
    dense: Rows
    moe: Rows = ()
    mtp: Ahead = field(default_factory=Ahead)
    around: Around = field(default_factory=Around)
    attentions: dict[str, Rows] = field(default_factory=dict)
    kinds_by: str = "layer_types"
    apart: dict[str, Rows] = field(default_factory=dict)
    flags: dict[str, Flag] = field(default_factory=dict)
    differing: bool = False
    defaults: dict[str, float] = field(default_factory=dict)

    def list_apart(self, kind: str, layer: int) -> Rows:
        """The rows that a layer has more by its kind, and Megatron elsewhere."""
        rows = self.apart.get(kind, ())
        return tuple(replace(row, megatron=row.megatron.format(layer=layer)) for row in rows)

    @property
    def packs_either_way(self) -> bool:
        """Whether experts are in both forms on the Hub: one tensor for a layer, or one each."""
        return any(row.when == "packed" for row in self.moe)

    @property
    def is_patterned(self) -> bool:
        """Whether a layer is one of a HybridModel, whatever is asked for."""
        return "patterned" in self.flags
