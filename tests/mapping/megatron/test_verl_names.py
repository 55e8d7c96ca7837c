"""Names and fused tensors of verl 0.3, worked out by hand."""

from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.megatron.convert import restore_model
from ckpt_tool.mapping.megatron.verl_names import use_core_names
from tests.support.backed import backed, same
from tests.support.megatron_models import config_of

CONFIG = config_of("qwen2")  # 4 query heads, 2 key and value heads of 2 rows; hidden size 6
LAYER = "model.layers.2."


def lazy(folder: Path, tensors: dict[str, torch.Tensor]):
    return {name: backed(folder / name, tensor) for name, tensor in tensors.items()}


def rows(*numbers: int) -> torch.Tensor:
    """A matrix of six columns whose rows are recognised by their first element."""
    return torch.stack([torch.arange(6.0) / 10 + number for number in numbers])


def test_heads_of_two_ranks_become_query_groups(tmp_path):
    """Rows 0-7 are of query heads, 8-11 of key heads, 12-15 of value heads: two for each."""
    ranks = torch.stack([rows(0, 1, 2, 3, 8, 9, 12, 13), rows(4, 5, 6, 7, 10, 11, 14, 15)])
    whole = lazy(tmp_path, {f"{LAYER}self_attn.qkv_proj.weight": ranks})
    ((name, found),) = use_core_names(whole, CONFIG).items()
    assert name == "decoder.layers.2.self_attention.linear_qkv.weight"
    expected = rows(0, 1, 2, 3, 8, 9, 12, 13, 4, 5, 6, 7, 10, 11, 14, 15)
    assert same(found.read(), expected)


def test_heads_of_one_rank_become_query_groups(tmp_path):
    bias = torch.arange(16.0)[None]
    whole = lazy(tmp_path, {f"{LAYER}self_attn.qkv_proj.bias": bias})
    (found,) = use_core_names(whole, CONFIG).values()
    order = [0, 1, 2, 3, 8, 9, 12, 13, 4, 5, 6, 7, 10, 11, 14, 15]
    assert same(found.read(), bias[0][order])


def test_every_name_has_its_counterpart(tmp_path):
    names = {
        f"{LAYER}self_attn.qkv_proj.weight": "self_attention.linear_qkv.weight",
        f"{LAYER}self_attn.qkv_proj.bias": "self_attention.linear_qkv.bias",
        f"{LAYER}self_attn.o_proj.weight": "self_attention.linear_proj.weight",
        f"{LAYER}mlp.gate_up_proj.weight": "mlp.linear_fc1.weight",
        f"{LAYER}mlp.down_proj.weight": "mlp.linear_fc2.weight",
        f"{LAYER}input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        f"{LAYER}post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    }
    expected = {name: f"decoder.layers.2.{found}" for name, found in names.items()} | {
        "model.embed_tokens.weight": "embedding.word_embeddings.weight",
        "model.norm.weight": "decoder.final_layernorm.weight",
        "lm_head.weight": "output_layer.weight",
    }
    whole = lazy(tmp_path, dict.fromkeys(expected, torch.zeros(1, 16, 6)))
    assert list(use_core_names(whole, CONFIG)) == list(expected.values())


def test_names_of_megatron_core_stay(tmp_path):
    whole = lazy(tmp_path, {"decoder.layers.0.self_attention.linear_qkv.weight": torch.zeros(16)})
    assert use_core_names(whole, CONFIG) is whole


def test_names_that_nobody_knows_are_unexpected(tmp_path):
    names = (f"{LAYER}self_attn.qkv_proj.weight", f"{LAYER}self_attn.gate.weight", "strange")
    whole = lazy(tmp_path, dict.fromkeys(names, torch.zeros(1, 16, 6)))
    with pytest.raises(MappingError) as refused:
        restore_model(whole, CONFIG)
    assert "unexpected: decoder.layers.2.self_attn.gate.weight" in refused.value.names
    assert "unexpected: strange" in refused.value.names


@pytest.mark.parametrize(
    "shape", [(3, 16, 6), (2, 16, 6), (1, 15, 6), (4, 4, 6), (0, 16, 6), (16,)]
)
def test_rows_that_do_not_fit_are_refused(tmp_path, shape):
    """Four ranks, too: verl 0.3 has no more of them than key heads."""
    whole = lazy(tmp_path, {f"{LAYER}self_attn.qkv_proj.weight": torch.zeros(shape)})
    with pytest.raises(MappingError) as refused:
        use_core_names(whole, CONFIG)
    assert f"{list(shape)}, expected 16 rows in all" in refused.value.names[0]
    assert refused.value.message.endswith(f"not what {CONFIG.path} says")
