"""Gated DeltaNet as megatron-core, ms-swift and slime store it: each by hand, and told apart."""

from collections.abc import Callable

import pytest
import torch

from ckpt_tool.common.errors import FormatError, MappingError
from ckpt_tool.mapping.config import MTP_KEYS
from ckpt_tool.mapping.megatron.convert import restore_model, to_megatron
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.mapping.megatron.rules import make_rules
from tests.support.megatron_models import config_of, hub_shapes, hub_tensors, rules_of, whole
from tests.support.saved import assert_equal, write_tensors

Tensors = dict[str, torch.Tensor]
FAMILIES = ("qwen3_next", "qwen3_5_text")
KEY_HEADS = 2
#: Layers with linear attention, and what is before their tensors.
LINEAR = {0: "decoder.layers.0.", 2: "decoder.layers.2."}


def parts_of(hub: Tensors, layer: int) -> Tensors:
    """Query, key, value, gate, beta and alpha of a layer, each [key heads, rows of one, ...]."""
    stem = f"model.layers.{layer}.linear_attn.in_proj_"
    if f"{stem}ba.weight" in hub:
        qkvz = hub[f"{stem}qkvz.weight"].unflatten(0, (KEY_HEADS, -1)).split([3, 3, 4, 4], 1)
        parts = (*qkvz, *hub[f"{stem}ba.weight"].unflatten(0, (KEY_HEADS, -1)).split([2, 2], 1))
    else:
        rows = hub[f"{stem}qkv.weight"].split([6, 6, 8])
        rows += tuple(hub[f"{stem}{name}.weight"] for name in "zba")
        parts = tuple(part.unflatten(0, (KEY_HEADS, -1)) for part in rows)
    return dict(zip(("query", "key", "value", "z", "beta", "alpha"), parts, strict=True))


def core(hub: Tensors, layer: int) -> Tensors:
    stem = f"model.layers.{layer}.linear_attn."
    found = {
        f"in_proj.weight.{name}": part.flatten(0, 1) for name, part in parts_of(hub, layer).items()
    }
    convolution = hub[f"{stem}conv1d.weight"].split([6, 6, 8])
    names = ("query", "key", "value")
    found |= {f"conv1d.weight.{name}": part for name, part in zip(names, convolution, strict=True)}
    norm = hub[f"{stem}norm.weight"] - 1
    return found | {"out_norm.weight": norm, **ends(hub, layer)}


def ends(hub: Tensors, layer: int) -> Tensors:
    """What is the same in megatron-core and ms-swift."""
    stem = f"model.layers.{layer}."
    names = ("A_log", "dt_bias", "out_proj.weight")
    found = {name: hub[f"{stem}linear_attn.{name}"] for name in names}
    return found | {"in_proj.layer_norm_weight": hub[f"{stem}input_layernorm.weight"]}


def swift(hub: Tensors, layer: int) -> Tensors:
    stem = f"model.layers.{layer}.linear_attn."
    together = torch.cat(list(parts_of(hub, layer).values()), 1).flatten(0, 1)
    convolution = [
        part.unflatten(0, (KEY_HEADS, -1)) for part in hub[f"{stem}conv1d.weight"].split([6, 6, 8])
    ]
    return {
        "in_proj.weight": together,
        "conv1d.weight": torch.cat(convolution, 1).flatten(0, 1),
        "out_norm.weight": hub[f"{stem}norm.weight"],
        **ends(hub, layer),
    }


def swift_apart(hub: Tensors, layer: int) -> Tensors:
    """With ``linear_decoupled_in_proj``: two projections, and the norm by itself."""
    found, parts = swift(hub, layer), list(parts_of(hub, layer).values())
    del found["in_proj.weight"]
    found["in_proj_qkvz.weight"] = torch.cat(parts[:4], 1).flatten(0, 1)
    found["in_proj_ba.weight"] = torch.cat(parts[4:], 1).flatten(0, 1)
    found["../input_layernorm.weight"] = found.pop("in_proj.layer_norm_weight")
    return found


def swift_module(hub: Tensors, layer: int) -> Tensors:
    """With ``USE_MCORE_GDN=0``: transformers' module in attention's place, the norm by itself."""
    stem = f"model.layers.{layer}."
    names = [name for name in hub if name.startswith(f"{stem}linear_attn.")]
    found = {name.removeprefix(f"{stem}linear_attn."): hub[name] for name in names}
    return found | {"../input_layernorm.weight": hub[f"{stem}input_layernorm.weight"]}


def slime(hub: Tensors, layer: int) -> Tensors:
    stem = f"model.layers.{layer}."
    names = [name for name in hub if name.startswith(f"{stem}linear_attn.")]
    found = {name.removeprefix(stem): hub[name] for name in names}
    return found | {"input_layernorm.weight": hub[f"{stem}input_layernorm.weight"]}


def query_by_head(hub: Tensors, stem: str) -> torch.Tensor:
    """Two groups of two heads of two rows, each with its gate."""
    query, key, value = (
        hub[f"{stem}self_attn.{n}_proj.weight"].unflatten(0, (2, -1)) for n in "qkv"
    )
    return torch.cat([query, key, value], 1).flatten(0, 1)


TRAINERS: dict[str, Callable[[Tensors, int], Tensors]] = {
    "megatron-core": core,
    "ms-swift": swift,
    "ms-swift, apart": swift_apart,
    "ms-swift, a module": swift_module,
    "slime": slime,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_each_trainer_is_read(family, trainer, tmp_path):
    hub = hub_tensors(family)
    sharded = to_megatron(write_tensors(tmp_path / "hub.safetensors", hub), rules_of(family))
    ours = {name: whole(tensor) for name, tensor in sharded.items()}
    for layer, stem in LINEAR.items():
        attention = f"{stem}self_attention."
        replaced = {name for name in ours if name.startswith(attention)}
        theirs = {f"{attention}{name}": t for name, t in TRAINERS[trainer](hub, layer).items()}
        theirs = {name.replace("self_attention.../", ""): t for name, t in theirs.items()}
        if trainer == "megatron-core":
            assert_equal(
                write_tensors(tmp_path / "core.safetensors", theirs), {n: ours[n] for n in replaced}
            )
        ours = {name: tensor for name, tensor in ours.items() if name not in replaced} | theirs
    if trainer.startswith("ms-swift"):
        places = {
            "decoder.layers.1.": "model.layers.1.",
            "mtp.layers.0.transformer_layer.": "mtp.layers.0.",
        }
        for own, stem in places.items():
            ours[f"{own}self_attention.linear_qkv.weight"] = query_by_head(hub, stem)
    if trainer == "slime" and family == "qwen3_next":
        first, second = ours["mtp.layers.0.eh_proj.weight"].chunk(2, 1)
        ours["mtp.layers.0.eh_proj.weight"] = torch.cat([second, first], 1)
    stored = write_tensors(tmp_path / "theirs.safetensors", ours)
    assert_equal(restore_model(stored, config_of(family)).tensors, hub)


REFUSED = {
    "an unknown kind": (
        {"layer_types": ["linear_attention", "mamba", "full_attention"]},
        "mamba: not",
    ),
    "too few kinds": (
        {"layer_types": ["linear_attention"]},
        "layer_types has 1 layer, but num_hidden_layers is 3",
    ),
    "heads that are no multiple": ({"linear_num_value_heads": 3}, "or a multiple"),
    "no heads": ({"linear_num_key_heads": 0}, "numbers from 1 on"),
    "no size": ({"linear_key_head_dim": None}, "linear_key_head_dim is None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_true_is_refused(case):
    changes, said = REFUSED[case]
    with pytest.raises((MappingError, FormatError), match=said):
        read_numbers(config_of("qwen3_next", **changes))


def test_kinds_by_interval_and_by_list():
    found = read_numbers(config_of("qwen3_next", full_attention_interval=3, layer_types=None)).kinds
    assert found == ("linear_attention", "linear_attention", "full_attention")
    kinds = ("full_attention", "linear_attention", "linear_attention")
    assert read_numbers(config_of("qwen3_next", layer_types=list(kinds))).kinds == kinds


def test_a_layer_ahead_is_found_where_no_config_says_it():
    config = {"num_nextn_predict_layers": None}
    hub = hub_shapes("qwen3_next")
    ahead = [name for name in hub if name.startswith("mtp.")]
    assert make_rules(config_of("qwen3_next", **config), hub).numbers.mtp == 1
    plain = [name for name in hub if name not in ahead]
    rules = make_rules(config_of("qwen3_next", **config), plain)
    assert (rules.numbers.mtp, rules.warnings) == (0, [])


@pytest.mark.parametrize("key", MTP_KEYS)
def test_it_is_not_counted_where_a_config_says_it(key):
    hub = hub_shapes("qwen3_next")
    for said in (0, 1):
        config = config_of("qwen3_next", **{"num_nextn_predict_layers": None, key: said})
        assert make_rules(config, hub).numbers.mtp == said
