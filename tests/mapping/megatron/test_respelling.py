"""Tensors under the names that other trainers, and older modules, give them: each by hand."""

import re
from types import SimpleNamespace

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.megatron.convert import restore_model
from tests.mapping.megatron.test_convert import converted, stored
from tests.support.megatron_models import config_of, hub_tensors, rules_of
from tests.support.saved import assert_equal
from tests.support.versions import MEGATRON_CORE

Tensors = dict[str, torch.Tensor]
SPARSE = ("deepseek_v32", "glm_moe_dsa")
_INDEXER = "self_attention.core_attention.indexer."
#: Heads of two rows of the indexer; of attention 4 heads, whose keys have 2 rows and values 4.
HEADS, KEY, VALUE = 4, 2, 4


def exchange(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.unflatten(0, (-1, 2, 1)).flip(1).flatten(0, 2)


def as_slime(tensors: Tensors) -> Tensors:
    """Norms in the up projections, and an indexer whose rows have other places."""
    found = {}
    for name, tensor in tensors.items():
        stem, indexed, end = name.partition(_INDEXER)
        own = f"{stem}self_attention.{end.removeprefix('linear_')}" if indexed else name
        for part in ("q", "kv"):
            norm = f"self_attention.linear_{part}_up_proj.layer_norm_weight"
            own = own.replace(f"self_attention.{part}_layernorm.weight", norm)
        found[own] = exchange(tensor) if indexed and "weights_proj" not in end else tensor
    return found


def as_absorbed(tensors: Tensors) -> Tensors:
    """Keys and values apart, each of all heads."""
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith("linear_kv_up_proj.weight")]:
        each = found.pop(name).unflatten(0, (HEADS, KEY + VALUE))
        for part, rows in {"k": each[:, :KEY], "v": each[:, KEY:]}.items():
            found[name.replace("_kv_up_", f"_{part}_up_")] = rows.flatten(0, 1)
    return found


def restored(tmp_path, family: str, tensors: Tensors) -> Tensors:
    return restore_model(stored(tmp_path, tensors, "theirs"), config_of(family)).tensors


@pytest.mark.real
@pytest.mark.skipif(MEGATRON_CORE < (0, 19), reason="the first that joins what older ones have")
def test_megatron_core_joins_keys_and_values_in_the_same_way(tmp_path):
    from megatron.core.transformer.experimental_attention_variant import absorbed_mla

    ours = converted(tmp_path, hub_tensors("deepseek_v32"), rules_of("deepseek_v32"))
    stem = "decoder.layers.1.self_attention.linear_"
    apart = as_absorbed(ours)
    config = SimpleNamespace(qk_head_dim=KEY, v_head_dim=VALUE, kv_lora_rank=3)
    layer = SimpleNamespace(num_attention_heads_per_partition=HEADS, config=config)
    parts = (apart[f"{stem}{part}_up_proj.weight"] for part in "kv")
    joined = absorbed_mla.AbsorbedMLASelfAttention._combine_split_kv_up_weights(layer, *parts)
    assert torch.equal(joined, ours[f"{stem}kv_up_proj.weight"])


@pytest.mark.parametrize("family", SPARSE)
@pytest.mark.parametrize("spell", [as_slime, as_absorbed])
def test_sparse_attention_of_others(family, spell, tmp_path):
    hub = hub_tensors(family)
    ours = converted(tmp_path, hub, rules_of(family))
    theirs = spell(ours)
    assert theirs.keys() != ours.keys()
    assert any(name.startswith("mtp.") for name in theirs.keys() - ours.keys())
    assert_equal(restored(tmp_path, family, theirs), hub)


def test_heads_that_slime_could_not_have_are_refused(tmp_path):
    changes = {"index_head_dim": 2, "qk_rope_head_dim": 2}
    theirs = as_slime(converted(tmp_path, hub_tensors("deepseek_v32"), rules_of("deepseek_v32")))
    config = config_of("deepseek_v32", **changes)
    with pytest.raises(MappingError, match="not what") as caught:
        restore_model(stored(tmp_path, theirs, "theirs"), config)
    assert any("of which 2 turn" in name for name in caught.value.names)


def test_one_half_alone_is_missing(tmp_path):
    theirs = as_absorbed(converted(tmp_path, hub_tensors("deepseek_v32"), rules_of("deepseek_v32")))
    del theirs["decoder.layers.1.self_attention.linear_v_up_proj.weight"]
    with pytest.raises(MappingError, match="1 missing and 1 unexpected") as caught:
        restored(tmp_path, "deepseek_v32", theirs)
    assert "missing: decoder.layers.1.self_attention.linear_kv_up_proj.weight" in caught.value.names


#: In the linear layers, beside the layer, and in attention and MLP: Megatron-Bridge, slime, and
#: ms-swift.
NORMS = {
    "in the layers": ("self_attention.linear_proj.post_layernorm", "mlp.linear_fc2.post_layernorm"),
    "beside": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "in the modules": ("self_attention.post_self_attn_layernorm", "mlp.post_mlp_layernorm"),
}
AFTER = ("gemma2", "gemma3_text", "exaone4", "glm4", "exaone4_5", "gemma3")


@pytest.mark.parametrize("family", AFTER)
@pytest.mark.parametrize("style", NORMS)
@pytest.mark.parametrize("layout", ["stacked", "per-layer"])
def test_norms_after_attention_and_mlp_of_others(family, style, layout, tmp_path):
    hub = hub_tensors(family)
    ours = converted(tmp_path, hub, rules_of(family, layout))
    own = "beside" if family == "glm4" else "in the layers"
    theirs = dict(ours)
    for old, new in zip(NORMS[own], NORMS[style], strict=True):
        theirs = {re.sub(rf"(?<=\.){re.escape(old)}", new, n): t for n, t in theirs.items()}
    assert (theirs.keys() == ours.keys()) == (style == own)
    assert_equal(restored(tmp_path, family, theirs), hub)
