"""A family's table, spelled out for one model: every tensor of both sides, by its full name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ckpt_tool.mapping.families.megatron_form import Around, MegatronRows, Row, Rows, Vision
from ckpt_tool.mapping.families.megatron_rows import TOP
from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.mapping.megatron.ops import Op, Same
from ckpt_tool.mapping.megatron.packing import name_ahead
from ckpt_tool.mapping.megatron.shared_kv import name_attention
from ckpt_tool.mapping.megatron.spelling import Sizes, expand, make_op, read_shapes
from ckpt_tool.tensors.geometry import Shape

#: The first two are a GPTModel's, the last one a HybridModel's: there attention and the MLP of a
#: layer are layers of their own, 0 and 1, 2 and 3, and so on. Source: ``megatron/core/models/
#: hybrid/`` of 0.18 and 0.19.
LAYOUTS = ("stacked", "per-layer", "hybrid")

#: A model that does not see, or whose tower has rows.
NO_TOWERS: Mapping[str, str] = MappingProxyType({})

_EXPERTS = "mlp.experts.experts."
_FINAL_NORM, _HYBRID_NORM = "decoder.final_layernorm.", "decoder.final_norm."


@dataclass(frozen=True, slots=True)
class Binding:
    """Hugging Face tensors, and where in which Megatron tensors they are.

    ``names`` are keys in the checkpoint, mostly one. ``index`` says which entry of their leading
    axes, of sizes ``extent``, these tensors are: layers and experts that are stacked. ``wholes``:
    the shapes of what is made of them; empty: their rows, one after the other. ``experts``: how
    many entries more what is made of them has in its first axis; 0: none. ``foreign``: the tensor
    of a module of transformers.
    """

    hf: tuple[str, ...]
    names: tuple[str, ...]
    index: Shape
    extent: Shape
    op: Op
    dtype: str
    shapes: tuple[Sizes, ...] = ()
    wholes: tuple[Sizes, ...] = ()
    experts: int = 0
    foreign: bool = False

    def expected(self) -> Iterator[tuple[str, Sizes]]:
        """Each Hugging Face tensor and its shape by the config; None: a size it does not say."""
        yield from zip(self.hf, self.shapes, strict=False)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where rows are put: prefixes of both sides, and the leading axes of their tensors."""

    hf: str
    megatron: str
    index: Shape = ()
    extent: Shape = ()


def choose_layout(family: MegatronRows, numbers: Numbers) -> str:
    """How megatron-core itself lays the layers out: stacked only where all are of one kind."""
    if "patterned" in numbers.flags:
        return "hybrid"
    alike = not numbers.moe or len(numbers.moe) == numbers.layers
    alike = alike and len({block.ffn for block in numbers.blocks}) < 2
    return "stacked" if alike and not family.differing else "per-layer"


def make_bindings(
    family: MegatronRows,
    numbers: Numbers,
    layout: str,
    towers: Mapping[str, str] = NO_TOWERS,
    vision_layout: str = "",
) -> list[Binding]:
    """Every tensor of the model, in the order of the layers; last the ``towers``.

    Those are names on the Hub, and Megatron's. They take the place of a tower that the family has
    rows of, whose layout may be another than the language model's.
    """
    around, prefix = family.around, family.around.prefix
    found = list(_spell(tuple(_name_top(around)), _Place("", prefix), numbers))
    found += _spell(around.beside, _Place("", ""), numbers)
    if layout == "hybrid":
        renamed = (tuple(n.replace(_FINAL_NORM, _HYBRID_NORM) for n in one.names) for one in found)
        found = [replace(one, names=names) for one, names in zip(found, renamed, strict=True)]
    apart = "per-layer" if "patterned" in numbers.flags else layout
    for layer in range(numbers.layers):
        hf, megatron = f"{around.trunk}layers.{layer}.", f"{prefix}decoder."
        places = _place_parts(hf, megatron, layer, numbers.layers, apart)
        kind = numbers.kinds[layer] if numbers.kinds else ""
        parts = _spell_layer(family, (kind, layer in numbers.moe), places, numbers.at(layer))
        found += parts if "by_kind" not in numbers.flags else _put_by_kind(parts, numbers, layer)
        found += _spell(family.list_apart(kind, layer), _Place(hf, ""), numbers)
    for number in range(numbers.mtp):
        found += _spell_mtp(family, numbers, number, prefix, layout)
    alike = [
        Binding((hf,), (name,), (), (), Same(), "", foreign=True) for hf, name in towers.items()
    ]
    if around.vision is not None and (around.has_radio or not alike):
        place = _Place(around.vision.prefix, around.outside)
        found += _spell_vision(around.vision, place, numbers, vision_layout or layout)
    return found + alike


def _name_top(around: Around) -> Iterator[Row]:
    """The rows outside of layers as the family calls them on the Hub."""
    for row in TOP:
        _, trunk, name = row.hf.rpartition("model.")
        module, _, kind = name.rpartition(".")
        name = f"{around.ends.get(module, module)}.{kind}"
        yield replace(row, hf=(around.trunk if trunk else around.head) + name)


def format_mtp_prefix(family: MegatronRows, numbers: Numbers, number: int) -> str:
    """The prefix, on the Hub, of the layer for multi-token prediction ``number``."""
    first = number * len(numbers.mtp_kinds)
    return family.mtp.prefix.format(after=numbers.layers + number, number=number, first=first)


def _place_layer(hf: str, megatron: str, layer: int, layers: int, layout: str) -> _Place:
    if layout == "stacked":
        return _Place(hf, f"{megatron}layers.", (layer,), (layers,))
    return _Place(hf, f"{megatron}layers.{layer}.")


def _place_parts(
    hf: str, megatron: str, layer: int, layers: int, layout: str
) -> tuple[_Place, _Place]:
    """Where the attention of a layer is put, and where its MLP."""
    if layout == "hybrid":
        attention, mlp = (_place_layer(hf, megatron, 2 * layer + i, 0, layout) for i in range(2))
        return attention, mlp
    place = _place_layer(hf, megatron, layer, layers, layout)
    return place, place


def _spell_layer(
    family: MegatronRows, kinds: tuple[str, bool], places: tuple[_Place, _Place], numbers: Numbers
) -> Iterator[Binding]:
    """A layer whose attention is of a kind, and which has experts or has not."""
    (kind, moe), (attention, mlp) = kinds, places
    yield from _spell(family.attentions.get(kind, family.attention), attention, numbers)
    dense = (kind == "mtp" and family.mtp.dense) or family.dense
    yield from _spell(family.moe if moe else dense, mlp, numbers)


def _put_by_kind(bindings: Iterator[Binding], numbers: Numbers, layer: int) -> Iterator[Binding]:
    """Attention under a key of its kind, and stacked with the layers of that alone."""
    own = [name_attention(kind) for kind in numbers.kinds]
    name, index, extent = f".{own[layer]}.", own[:layer].count(own[layer]), own.count(own[layer])
    for each in bindings:
        names = tuple(found.replace(".self_attention.", name) for found in each.names)
        if names == each.names or not each.index:
            yield replace(each, names=names)
        else:
            yield replace(each, names=names, index=(index,), extent=(extent,))


def _spell_mtp(
    family: MegatronRows, numbers: Numbers, number: int, prefix: str, layout: str
) -> Iterator[Binding]:
    """A layer for multi-token prediction: mostly of the kind of the last layer, never stacked."""
    layer = f"{prefix}mtp.layers.{number}."
    if numbers.mtp_kinds:
        yield from _spell_parts_ahead(family, numbers, number, layer)
        return
    hf = format_mtp_prefix(family, numbers, number)
    yield from _spell(family.mtp.rows, _Place(family.mtp.top or hf, layer), numbers)
    place = _Place(hf, f"{layer}transformer_layer.")
    places = (place, place)
    if layout == "hybrid":
        places = _place_parts(hf, f"{layer}mtp_model_layer.", 0, 1, layout)
    moe = numbers.layers - 1 in numbers.moe and "dense_ahead" not in numbers.flags
    kind = numbers.ahead[number] if numbers.ahead else "mtp"
    yield from _spell_layer(family, (kind, moe), places, name_ahead(numbers))


def _spell_parts_ahead(
    family: MegatronRows, numbers: Numbers, number: int, megatron: str
) -> Iterator[Binding]:
    """The same of layers that are one part each: the first has what goes in, the last what ends."""
    count = len(numbers.mtp_kinds)
    for at, kind in enumerate(numbers.mtp_kinds):
        hf = family.mtp.prefix.format(first=number * count + at)
        ends = (family.mtp.rows if at == 0 else ()) + (family.mtp.end if at == count - 1 else ())
        yield from _spell(ends, _Place(hf, megatron), numbers)
        place = _Place(hf, f"{megatron}mtp_model_layer.layers.{at}.")
        yield from _spell_layer(family, (kind, kind == "E"), (place, place), numbers)


def _spell_vision(
    vision: Vision, place: _Place, numbers: Numbers, layout: str
) -> Iterator[Binding]:
    yield from _spell(vision.rows, place, numbers)
    decoder, count = f"{place.megatron}vision_model.decoder.", numbers.vision_layers
    layout = "stacked" if vision.always and layout == "hybrid" else layout
    for layer in range(count):
        hf = f"{vision.prefix}blocks.{layer}."
        yield from _spell(vision.block, _place_layer(hf, decoder, layer, count, layout), numbers)
    for number in range(numbers.vision_mergers if vision.merger else 0):
        name = f"deepstack_merger_list.{number}."
        yield from _spell(vision.merger, _Place(vision.prefix + name, decoder + name), numbers)


def _spell(rows: Rows, place: _Place, numbers: Numbers) -> Iterator[Binding]:
    for row in rows:
        if row.when and row.when not in numbers.flags:
            continue
        hf, names = expand(place.hf + row.hf), expand(place.megatron + row.megatron)
        shapes = read_shapes(row.shape, len(hf), numbers)
        wholes = read_shapes(row.whole, len(names), numbers)
        binding = Binding(
            tuple(hf),
            tuple(name.replace("{e}.", "") for name in names),
            place.index,
            place.extent,
            make_op(row, numbers),
            row.dtype,
            shapes,
            wholes,
            numbers.experts if _EXPERTS in row.megatron and not row.is_each else 0,
        )
        yield from _spell_experts(binding, numbers.experts) if row.is_each else [binding]


def _spell_experts(binding: Binding, experts: int) -> Iterator[Binding]:
    """The tensors of each expert, which are one entry more of an axis of Megatron's."""
    extent = (*binding.extent, experts)
    for expert in range(experts):
        numbers = {"{e}": str(expert), "{E+e}": str(experts + expert)}  # that of a second pool
        mark = next(mark for mark in numbers if mark in binding.hf[0])
        hf = tuple(name.replace(mark, numbers[mark]) for name in binding.hf)
        yield replace(binding, hf=hf, index=(*binding.index, expert), extent=extent)
