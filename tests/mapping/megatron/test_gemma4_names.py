"""Gemma 4 under ms-swift's names: what its bridge (mcore_bridge 1.6) makes of a model, by hand."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_tool import MergeOptions, WriteOptions, merge_megatron
from ckpt_tool.common.errors import MappingError
from tests.operations.to_mcore.test_inputs import Tensors, assert_same
from tests.support.gemma4_models import GEMMA4, write_gemma4
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = [
    needs_transformers_5,
    pytest.mark.filterwarnings("ignore:torch.distributed is"),
]
TRUNK = "model.language_model."
BESIDE = {
    "embed_tokens": "embedding.word_embeddings",
    "norm": "decoder.final_layernorm",
    "embed_tokens_per_layer": "embed_tokens_per_layer",
    "per_layer_model_projection": "per_layer_model_projection",
    "per_layer_projection_norm": "per_layer_projection_norm",
}
#: A layer's tensors on the Hub, and ms-swift's; any other is called as there.
LAYER = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_feedforward_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
    "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "self_attention.k_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "router.proj.weight": "experts_mlp.router.weight",
    "router.scale": "experts_mlp.scale",
    "router.per_expert_scale": "experts_mlp.per_expert_scale",
    "experts.gate_up_proj": "experts_mlp.experts.experts.linear_fc1.weight",
    "experts.down_proj": "experts_mlp.experts.experts.linear_fc2.weight",
    "pre_feedforward_layernorm_2.weight": "experts_mlp.pre_feedforward_layernorm_2.weight",
}


def as_swift(hub: Tensors, groups: dict[int, int]) -> Tensors:
    """The tensors of ms-swift's model; ``groups``: of keys in each layer."""
    found, layers = {}, {}
    for name, tensor in hub.items():
        if name.startswith(f"{TRUNK}layers."):
            number, _, rest = name.removeprefix(f"{TRUNK}layers.").partition(".")
            layers.setdefault(int(number), {})[rest] = tensor
        elif name.startswith(TRUNK):
            module = name.removeprefix(TRUNK).removesuffix(".weight")
            found[f"language_model.{BESIDE[module]}.weight"] = tensor
        else:
            found["visual." + name.removeprefix("model.")] = tensor
    for number, layer in layers.items():
        prefix = f"language_model.decoder.layers.{number}."
        gate_up = [layer.pop(f"mlp.{part}_proj.weight") for part in ("gate", "up")]
        found[f"{prefix}mlp.linear_fc1.weight"] = torch.cat(gate_up)
        names = [f"self_attn.{part}_proj.weight" for part in "qkv"]
        parts = [layer.pop(name).chunk(groups[number]) for name in names if name in layer]
        rows = [part[group] for group in range(groups[number]) for part in parts]
        found[f"{prefix}self_attention.linear_qkv.weight"] = torch.cat(rows)
        found |= {prefix + LAYER.get(name, name): tensor for name, tensor in layer.items()}
    return found


def save(name: str, folder: Path) -> tuple[Path, Tensors]:
    """The model on the Hub, and its tensors in ms-swift's form."""
    model = write_gemma4(name, folder / "hf", towers=True)
    tied = GEMMA4[name].get("attention_k_eq_v", False)
    groups = {number: 1 if tied and number % 3 == 2 else 2 for number in range(6)}
    return model, as_swift(load_folder(model), groups)


@pytest.mark.parametrize("name", GEMMA4)
def test_what_ms_swift_has_is_the_same_model(name, tmp_path) -> None:
    model, swift = save(name, tmp_path)
    dcp.save(swift, checkpoint_id=tmp_path / "swift", no_dist=True)
    back = MergeOptions(config=model, write=WriteOptions(fsync=False, check_load=False))
    result = merge_megatron(tmp_path / "swift", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))
    assert result.dropped == {}  # it has nothing that nobody reads


def test_keys_that_are_there_twice_are_not_ms_swifts(tmp_path) -> None:
    model, swift = save("31b", tmp_path)
    key = "language_model.decoder.layers.2.self_attention.linear_qkv.weight"
    swift[key] = torch.cat([swift[key], swift[key][-16:]])
    dcp.save(swift, checkpoint_id=tmp_path / "swift", no_dist=True)
    with pytest.raises(MappingError) as caught:
        merge_megatron(tmp_path / "swift", tmp_path / "back", MergeOptions(config=model))
    assert "[96, 32]: [96, 32], expected 64 + 16 rows" in caught.value.names[0]
