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


Rows = tuple[Row, ...]
Flag = Literal[True] | tuple[str, bool]


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
class MegatronRows:
    """The rows of a family's layers; those outside of layers are the same for all.

    ``attentions``: rows in place of ``attention``, by the kinds of layers that ``layer_types`` of
    the config has; ``mtp`` is the kind of layers for multi-token prediction. Of a family with the
    flag ``patterned`` a layer is one of a HybridModel, that is attention or Mamba or an MLP, and
    its kind the symbol that it has there.
    ``flags``: True, or the config key that decides and what holds where the key is absent.
    ``differing``: Megatron is always given a list of layer kinds, so that layers have keys of
    their own even where all are alike. ``mtp_prefix`` is that of a layer for multi-token
    prediction on the Hub, with its ``number``, or how many layers it comes ``after``;
    ``mtp_repeats``: it has copies of the embedding and the head there; ``mtp_top``: before the
    names of ``mtp`` where these are not below a layer; there is one layer then. ``mtp_dense``: rows
    in place of ``dense`` there. ``mtp_end``: what a layer for multi-token prediction ends with,
    where it is several on the Hub; ``mtp`` is then what it begins with. ``trunk`` is before the
    names of the language model on the Hub, ``head`` before that of its head, ``embedding`` the name
    of its embedding there; ``ends``: what the rows outside of layers are called on the Hub, where
    that is otherwise. ``towers``: prefixes below which tensors are the same on both sides, those of
    modules that a trainer takes from transformers. Of a family with ``vision`` too, checkpoints
    have either; written is ``vision`` where it is ``native``, Megatron-Bridge's own form.
    ``moved``: what Megatron has in place of such a prefix, where that is another.
    ``outside`` is before all of its names. ``absent``: prefixes of what is on the Hub and in no
    model of Megatron's. ``inner``: there are no rows here, the language model's are those of the
    model type that its own config names. ``kinds_by``: what says the kinds of layers, where
    ``layer_types`` does not. ``beside``: rows of modules beside the layers, by their whole names on
    both sides. ``apart``: rows that layers of a kind have more, and Megatron elsewhere, by
    whole names with the number of the ``layer``. ``defaults``: numbers that the config's class has
    where ``config.json`` leaves them out.
    """

    attention: Rows
    dense: Rows
    moe: Rows = ()
    mtp: Rows = ()
    flags: dict[str, Flag] = field(default_factory=dict)
    differing: bool = False
    mtp_prefix: str = "model.layers.{after}."
    mtp_repeats: bool = True
    mtp_top: str = ""
    mtp_dense: Rows = ()
    vision: Vision | None = None
    trunk: str = "model."
    head: str = ""
    towers: tuple[str, ...] = ()
    attentions: dict[str, Rows] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    outside: str = ""
    absent: tuple[str, ...] = ()
    inner: bool = False
    native: bool = False
    kinds_by: str = "layer_types"
    beside: Rows = ()
    apart: dict[str, Rows] = field(default_factory=dict)
    defaults: dict[str, float] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    mtp_end: Rows = ()

    def list_apart(self, kind: str, layer: int) -> Rows:
        """The rows that a layer has more by its kind, and Megatron elsewhere."""
        rows = self.apart.get(kind, ())
        return tuple(replace(row, megatron=row.megatron.format(layer=layer)) for row in rows)

    @property
    def sees(self) -> bool:
        """Whether there is more than a language model."""
        return self.vision is not None or bool(self.towers)

    @property
    def is_patterned(self) -> bool:
        """Whether a layer is one of a HybridModel, whatever is asked for."""
        return "patterned" in self.flags

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
        around = ("vision_model.", "vision_projection.", "sound_")
        always = self.vision is not None and self.vision.always
        return self.megatron_towers + tuple(self.outside + name for name in around if always)
