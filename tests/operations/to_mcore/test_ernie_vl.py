"""ERNIE-4.5-VL to Megatron and back, against the names and layouts of Megatron-Bridge.

`NAMES` and `RESAMPLER` are rows of Megatron-Bridge 0.6.2 (`ernie_vl`), copied.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    verify_checkpoint,
)
from ckpt_tool.common.errors import CkptError, UsageError
from tests.operations.to_mcore.test_inputs import Tensors, assert_same, loaded
from tests.real.fill import fill_distinct
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5
UNSYNCED = WriteOptions(fsync=False, check_load=False)

LAYERS, EXPERTS, HEADS, GROUPS = 3, 4, 4, 2
TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 28,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "moe_intermediate_size": [12, 10],
    "moe_k": 2,
    "moe_num_experts": EXPERTS,
    "moe_num_shared_experts": 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 50000.0,
        "mrope_section": [1, 1, 2],
    },
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 4,
}
#: A layer of Megatron's, and what it is on the Hub.
NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.shared_experts.linear_fc2.weight": "mlp.shared_experts.down_proj.weight",
}
RESAMPLER = {
    **{
        f"{part}_linear.{new}.": f"{part}_linear.{old}."
        for part in ("spatial", "temporal")
        for new, old in {"fc1": 0, "fc2": 2, "ln": 3}.items()
    },
    "mlp.": "mlp.",
    "after_norm.": "after_norm.",
}
#: What the config says before transformers had the family, with keys of its own for some.
FLAT = {
    "model_type": "ernie4_5_moe_vl",
    "moe_num_experts": [EXPERTS, EXPERTS],
    "moe_layer_start_index": [1, 1],
    "moe_layer_end_index": [LAYERS + 1, LAYERS],
    "mlp_layer_types": None,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers writes it, and so it is on the Hub."""
    folder = tmp_path_factory.mktemp("ernie_vl")
    config = transformers.Ernie4_5_VLMoeConfig(text_config=TEXT, vision_config=VISION)
    built = transformers.Ernie4_5_VLMoeForConditionalGeneration(config)
    fill_distinct(built)
    built.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flat(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it was released before: all in one config, and the tower beside the model."""
    folder = tmp_path_factory.mktemp("ernie_flat")
    tensors = load_file(model / "model.safetensors")
    old, new = "model.vision_model.", "vision_model."
    named = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config |= config.pop("text_config") | FLAT
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def convert(model: Path, out: Path, **options: Any) -> Tensors:
    convert_to_mcore(model, out, ToMcoreOptions(write=UNSYNCED, **options))
    return loaded(out)


def say(model: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    text = config.get("text_config", config)
    text |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def join_experts(hub: Tensors, mlp: str, numbers: range) -> dict[str, torch.Tensor]:
    """Gate and up of each expert, one after the other, and what comes after them."""
    each = [f"{mlp}experts.{number}." for number in numbers]
    first = [
        torch.cat([hub[f"{one}{part}_proj.weight"] for part in ("gate", "up")]) for one in each
    ]
    second = [hub[f"{one}down_proj.weight"] for one in each]
    return {"linear_fc1.weight": torch.stack(first), "linear_fc2.weight": torch.stack(second)}


def list_layer(hub: Tensors, theirs: str, *, moe: bool) -> Tensors:
    """A layer by Megatron's names, by the rows of Megatron-Bridge."""
    rows = [hub[f"{theirs}self_attn.{part}_proj.weight"].chunk(GROUPS) for part in "qkv"]
    wanted = {
        "self_attention.linear_qkv.weight": torch.cat(
            [part[group] for group in range(GROUPS) for part in rows]
        )
    }
    skipped = "mlp.linear" if moe else "pre_mlp"
    for name, other in NAMES.items():
        if theirs + other in hub and not name.startswith(skipped):
            wanted[name] = hub[theirs + other]
    mlp = f"{theirs}mlp."
    if not moe:
        parts = [hub[f"{mlp}{part}_proj.weight"] for part in ("gate", "up")]
        return wanted | {"mlp.linear_fc1.weight": torch.cat(parts)}
    parts = [hub[f"{mlp}shared_experts.{part}_proj.weight"] for part in ("gate", "up")]
    wanted["mlp.shared_experts.linear_fc1.weight"] = torch.cat(parts)
    pools = {"text_moe_layer": ("weight", 0), "vision_moe_layer": ("weight_1", EXPERTS)}
    for row, (pool, (gate, first)) in enumerate(pools.items()):
        wanted[f"mlp.{pool}.router.weight"] = hub[f"{mlp}gate.{gate}"].T.contiguous()
        bias = hub[f"{mlp}moe_statics.e_score_correction_bias"][row]
        wanted[f"mlp.{pool}.router.expert_bias"] = bias
        for name, tensor in join_experts(hub, mlp, range(first, first + EXPERTS)).items():
            wanted[f"mlp.{pool}.experts.experts.{name}"] = tensor
    return wanted


def list_wanted(hub: Tensors, tower: str) -> Tensors:
    """Every tensor of Megatron's; ``tower``: what is before the names of that on the Hub."""
    wanted = {
        "language_model.embedding.word_embeddings.weight": hub["model.embed_tokens.weight"],
        "language_model.decoder.final_layernorm.weight": hub["model.norm.weight"],
    }
    for layer in range(LAYERS):
        found = list_layer(hub, f"model.layers.{layer}.", moe=layer > 0)
        ours = f"language_model.decoder.layers.{layer}."
        wanted |= {ours + name: tensor for name, tensor in found.items()}
    prefixes = {tower: "vision_tower."}
    prefixes |= {
        f"model.resampler_model.{old}": f"resampler_model.{new}" for new, old in RESAMPLER.items()
    }
    for old, new in prefixes.items():
        inside = {name: t for name, t in hub.items() if name.startswith(old)}
        assert inside
        wanted |= {new + name.removeprefix(old): tensor for name, tensor in inside.items()}
    return wanted


def test_every_tensor_is_where_megatron_bridge_has_it(model, tmp_path):
    hub = load_folder(model)
    assert_same(convert(model, tmp_path / "out"), list_wanted(hub, "model.vision_model."))


def test_the_config_that_was_released_before_says_the_same(flat, tmp_path):
    hub = load_folder(flat)
    assert_same(convert(flat, tmp_path / "out"), list_wanted(hub, "vision_model."))


@pytest.mark.parametrize("kind", ["model", "flat"])
def test_there_and_back_is_the_identity(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    options = ToMcoreOptions(layout="megatron-lm", vocab_multiple=64, write=UNSYNCED)
    convert_to_mcore(model, tmp_path / "there", options)
    back = MergeOptions(config=model, write=UNSYNCED)
    merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))
    assert verify_checkpoint(tmp_path / "there", model).equal


def take_part(name: str, whole: torch.Tensor, rank: int) -> torch.Tensor:
    """What one of two tensor-parallel ranks has; of transformers' own modules all."""
    if not name.startswith("language_model."):
        return whole.clone()
    if "embedding" in name:
        return torch.nn.functional.pad(whole, (0, 0, 0, 1)).chunk(2)[rank].clone()
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return whole.chunk(2, 1)[rank].clone()
    if name.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(2)[rank] for half in whole.chunk(2)])
    return whole.chunk(2)[rank].clone() if name.endswith("linear_qkv.weight") else whole.clone()


def name_modules(found: Tensors) -> Tensors:
    """The tensors as modules call them, each expert by itself."""
    named: Tensors = {}
    for name, tensor in found.items():
        stem, experts, rest = name.partition(".experts.experts.")
        if not experts:
            named[name] = tensor
        for number, expert in enumerate(tensor if experts else ()):
            named[f"{stem}.experts.local_experts.{number}.{rest}"] = expert
    return named


def test_files_of_two_ranks_are_put_together(model, tmp_path):
    found = name_modules(list_wanted(load_folder(model), "model.vision_model."))
    for rank in range(2):
        path = tmp_path / "actor" / "model" / f"mp_rank_{rank:02d}_000" / "model.pt"
        path.parent.mkdir(parents=True)
        torch.save([{name: take_part(name, t, rank) for name, t in found.items()}], path)
    result = verify_checkpoint(tmp_path / "actor", model)
    assert result.equal
    assert result.num_compared == len(load_folder(model))


FALSE = {
    "pools of several sizes": ({"moe_num_experts": [4, 3]}, "the same number for both pools"),
    "pools in other layers": ({"moe_layer_start_index": [1, 2]}, "the same number for both pools"),
    "pools that end elsewhere": ({"moe_layer_end_index": [2, 1]}, "the same number for both pools"),
    "one width": ({"moe_intermediate_size": [12]}, "expected two, one of each pool"),
    "a width": ({"moe_intermediate_size": 12}, "expected a list of sizes"),
    "other experts": ({"moe_num_experts": [2, 2]}, "unexpected tensors"),
}


@pytest.mark.parametrize(("changes", "match"), FALSE.values(), ids=FALSE)
def test_what_cannot_be_true_is_refused(flat, tmp_path, changes, match):
    with pytest.raises(CkptError, match=match):
        convert(say(flat, tmp_path / "hf", **changes), tmp_path / "out")


@pytest.mark.real
def test_megatron_core_cannot_build_it(model, tmp_path):
    checked = ToMcoreOptions(write=WriteOptions(fsync=False, check_load=True))
    with pytest.raises(UsageError, match="no layer with two pools of experts"):
        convert_to_mcore(model, tmp_path / "out", checked)
