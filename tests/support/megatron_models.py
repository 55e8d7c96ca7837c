"""A small config of every family, and by hand the tensors that such a model has on the Hub.

What a family is, is a record in ``megatron_dense.py``, ``megatron_routed.py`` or
``megatron_gated.py``; nothing there or here comes from the tables.
"""

from pathlib import Path

import torch

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.rules import Rules, make_rules
from ckpt_tool.tensors.geometry import check_coverage
from ckpt_tool.tensors.tiled import TiledTensor
from tests.support.megatron_dense import DENSE_MODELS
from tests.support.megatron_gated import GATED_MODELS
from tests.support.megatron_parts import Ahead, Model, Shapes, under
from tests.support.megatron_routed import ROUTED_MODELS

MODELS: dict[str, Model] = {**DENSE_MODELS, **ROUTED_MODELS, **GATED_MODELS}
CONFIGS = {family: model.config for family, model in MODELS.items()}
FAMILIES = tuple(MODELS)


def config_of(family: str, **changes) -> ModelConfig:
    raw = {"model_type": family, **CONFIGS[family], **changes}
    return ModelConfig(Path("model"), raw, {})


def alike(family: str) -> dict:
    """Changes after which all layers of a family are of one kind, so that they can be stacked."""
    return MODELS[family].alike


def rules_of(family: str, layout: str = "", vocab_multiple: int = 1, **changes) -> Rules:
    config = config_of(family, **changes)
    return make_rules(config, hub_shapes(family, **changes), layout, vocab_multiple)


def hub_shapes(family: str, **changes) -> Shapes:
    """Name -> shape of every tensor; nothing here comes from the tables."""
    model, config = MODELS[family], CONFIGS[family] | changes
    layers = model.layers
    if model.alike and changes | model.alike == changes:
        layers = (model.even or layers[-1],) * len(layers)
    shapes: Shapes = {f"{model.trunk}{model.embedding}.weight": (11, 6)}
    shapes |= under(model.trunk, model.final)
    if not config["tie_word_embeddings"]:
        shapes[model.head] = (11, 6)
    for number, layer in enumerate(layers):
        shapes |= under(f"{model.trunk}layers.{number}.", layer)
    for number in range(_count_ahead(config) if model.ahead else 0):
        shapes |= _list_ahead(model.ahead, model.ahead.of or layers[-1], number)
    return shapes | model.tower


def _count_ahead(config: dict) -> int:
    return config.get("num_nextn_predict_layers", config.get("mtp_num_hidden_layers", 0))


def _list_ahead(ahead: Ahead, layer: Shapes, number: int) -> Shapes:
    places = {"at": 3 + number, "number": number}
    joint = (ahead.joint or ahead.layer).format(**places)
    found = under(joint, ahead.before) | under(ahead.layer.format(**places), layer)
    return found | under(joint, ahead.after)


def hub_tensors(family: str, **changes) -> dict[str, torch.Tensor]:
    """The tensors, all elements of which differ, also from those of every other tensor."""
    return fill(hub_shapes(family, **changes))


def fill(shapes: Shapes) -> dict[str, torch.Tensor]:
    """A tensor of each shape, all elements of which differ, also from those of every other one."""
    at, tensors = 1, {}
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        tensors[name] = torch.arange(at, at + size, dtype=torch.float32).reshape(shape)
        at += size
    return tensors


def whole(sharded: TiledTensor) -> torch.Tensor:
    """A Megatron tensor put together from its blocks, which must tile it."""
    assert check_coverage(sharded.shape, [block.box for block in sharded.blocks])
    result = torch.empty(sharded.shape, dtype=getattr(torch, sharded.dtype.name))
    for block in sharded.blocks:
        spans = zip(block.box.offsets, block.box.sizes, strict=True)
        part = block.tensor.read().reshape(block.box.sizes)
        result[tuple(slice(at, at + size) for at, size in spans)] = part
    return result


def _having(word: str) -> dict[str, set[int]]:
    """Family -> which of its three layers have a tensor with that in its name."""
    found = {
        family: {n for n, layer in enumerate(model.layers) if any(word in name for name in layer)}
        for family, model in MODELS.items()
    }
    return {family: layers for family, layers in found.items() if layers}


#: The layers that they have for multi-token prediction.
PREDICTING = {
    family: _count_ahead(model.config)
    for family, model in MODELS.items()
    if model.ahead and _count_ahead(model.config)
}
#: Which of the three layers have experts.
MOE = _having(".experts.")
#: Experts of a layer are one tensor on the Hub too.
PACKED = tuple(_having(".experts.down_proj"))
#: Some layers have no full attention.
GATED = tuple(_having("linear_attn."))
SEEING = tuple(family for family, model in MODELS.items() if model.tower)
#: Those whose towers have rows.
WITH_BLOCKS = tuple(family for family, model in MODELS.items() if model.tower_has_rows)
#: Towers that are the same on both sides, of no shape that a config says.
TOWERS = {name: MODELS[name].tower for name in SEEING if not MODELS[name].tower_has_rows}

#: Family, layout, changes of its config: as it is, and with all layers alike.
CASES = [(family, "per-layer", {}) for family in FAMILIES]
CASES += [(family, "per-layer", alike(family)) for family in FAMILIES if alike(family)]
CASES += [(family, "stacked", alike(family)) for family in FAMILIES]
#: A HybridModel has no vision tower, and no norms beside attention and MLP.
CASES += [
    (family, "hybrid", {})
    for family, model in MODELS.items()
    if not model.tower and model.can_be_hybrid
]
