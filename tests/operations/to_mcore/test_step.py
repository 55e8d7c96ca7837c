"""Step-3.5 and 3.7 to Megatron and back, against the names and layouts of Megatron-Bridge.

`NAMES` are rows of Megatron-Bridge 0.6.2 (`stepfun`), copied: those of layers that predict further
tokens and of the tower, which transformers' model has not or calls otherwise, are held against
nothing else.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    VerifyOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    verify_checkpoint,
)
from ckpt_tool.common.errors import MappingError
from tests.operations.to_mcore.test_inputs import Tensors, assert_same, loaded
from tests.real.megatron_step import AHEAD, HEAD, HEADS, make_config, write_whole
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5
UNSYNCED = WriteOptions(fsync=False, check_load=False)

#: A layer of Megatron's, and what it is on the Hub.
NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "mlp.shared_experts.linear_fc2.weight": "share_expert.down_proj.weight",
    "mlp.router.weight": "moe.gate.weight",
    "mlp.router.expert_bias": "moe.router_bias",
    "mlp.experts.experts.linear_fc2.weight": "moe.down_proj.weight",
}
#: Layers for multi-token prediction have these too.
NAMES_AHEAD = {
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "final_layernorm.weight": "transformer.shared_head.norm.weight",
}
PROJECTOR = "image_insert_embedding.align_projector.weight", "vit_large_projector.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Step-3.7 with two layers for multi-token prediction, as transformers writes its config."""
    return write_whole(tmp_path_factory.mktemp("step"), {"num_nextn_predict_layers": 2})


@pytest.fixture(scope="module")
def text(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its language model as a Step-3.5, with the config that is on the Hub."""
    folder = tmp_path_factory.mktemp("step_text")
    tensors = load_folder(whole)
    kept = {name: t for name, t in tensors.items() if name.startswith(("model.", "lm_head."))}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = make_config(num_nextn_predict_layers=2)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def convert(model: Path, out: Path, **options: Any) -> Tensors:
    convert_to_mcore(model, out, ToMcoreOptions(write=UNSYNCED, **options))
    return loaded(out)


def write_again(tensors: Tensors, folder: Path) -> Path:
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    return folder


def say(model: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def weave(hub: Tensors, layer: str) -> torch.Tensor:
    """By hand, as Megatron-Bridge's `merge_qkvg_weights` has it for `attention_output_gate`."""
    query, key, value, gate = (hub[f"{layer}self_attn.{part}_proj.weight"] for part in "qkvg")
    rows, each = [], len(gate) // 2
    for group in range(2):
        heads = range(group * each, (group + 1) * each)
        rows += [query[head * HEAD : (head + 1) * HEAD] for head in heads]
        rows += [gate[head : head + 1].expand(HEAD, -1) for head in heads]
        rows += [part[group * HEAD : (group + 1) * HEAD] for part in (key, value)]
    return torch.cat(rows)


def list_wanted(hub: Tensors, prefix: str) -> Tensors:
    """Every tensor of Megatron's language model, by the rows of Megatron-Bridge."""
    wanted = {
        f"{prefix}embedding.word_embeddings.weight": hub["model.embed_tokens.weight"],
        f"{prefix}output_layer.weight": hub["lm_head.weight"],
        f"{prefix}decoder.final_layernorm.weight": hub["model.norm.weight"],
    }
    places = {f"{prefix}decoder.layers.{n}.": f"model.layers.{n}." for n in range(4)}
    for number in range(2):
        ours, theirs = f"{prefix}mtp.layers.{number}.", f"model.layers.{4 + number}."
        places[f"{ours}transformer_layer."] = theirs
        wanted |= {ours + name: hub[theirs + other] for name, other in NAMES_AHEAD.items()}
    for ours, theirs in places.items():
        moe = f"{theirs}moe.gate.weight" in hub
        wanted[f"{ours}self_attention.linear_qkv.weight"] = weave(hub, theirs)
        for name, other in NAMES.items():
            if theirs + other in hub and not name.startswith("mlp.lin" if moe else "pre_mlp"):
                wanted[ours + name] = hub[theirs + other]
        joined = {"mlp.linear_fc1.weight": ("mlp", 0)}
        if moe:
            joined = {
                "mlp.experts.experts.linear_fc1.weight": ("moe", 1),
                "mlp.shared_experts.linear_fc1.weight": ("share_expert", 0),
            }
        for name, (block, dim) in joined.items():
            parts = [hub[f"{theirs}{block}.{part}_proj.weight"] for part in ("gate", "up")]
            wanted[ours + name] = torch.cat(parts, dim)
    return wanted


def test_every_tensor_is_where_megatron_bridge_has_it(text, tmp_path):
    hub = load_folder(text)
    assert [len(hub[f"model.layers.{n}.self_attn.g_proj.weight"]) for n in range(6)] == [
        *(HEADS["full_attention"], HEADS["sliding_attention"]) * 2,
        *(HEADS[kind] for kind in AHEAD),
    ]
    assert_same(convert(text, tmp_path / "out", dtype="float32"), list_wanted(hub, ""))


def test_a_tower_is_the_same_on_both_sides_but_for_its_projector(whole, tmp_path):
    hub = load_folder(whole)
    tower = {name: t for name, t in hub.items() if name.startswith("vision_model.")}
    assert len(tower) > 20
    tower[PROJECTOR[0]] = hub[PROJECTOR[1]]
    found = convert(whole, tmp_path / "out", dtype="float32")
    assert_same(found, list_wanted(hub, "language_model.") | tower)


@pytest.mark.parametrize("kind", ["whole", "text"])
def test_there_and_back_is_the_identity(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    options = ToMcoreOptions(layout="megatron-lm", vocab_multiple=64, write=UNSYNCED)
    result = convert_to_mcore(model, tmp_path / "there", options)
    heads = [f"model.layers.{4 + n}.transformer.shared_head.output.weight" for n in range(2)]
    assert result.dropped.keys() == set(heads)
    assert all("fill_from" in reason for reason in result.dropped.values())
    back = MergeOptions(config=model, write=UNSYNCED, fill_from=model)
    filled = merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert not any("prediction" in warning for warning in filled.warnings)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))
    assert verify_checkpoint(tmp_path / "there", model, VerifyOptions(fill_from=model)).equal


def test_heads_that_megatron_has_not_are_not_made_up(text, tmp_path):
    convert(text, tmp_path / "there")
    back = MergeOptions(config=text, write=UNSYNCED)
    result = merge_megatron(tmp_path / "there", tmp_path / "back", back)
    said = "prediction have no transformer.shared_head.output here"
    assert [said in warning for warning in result.warnings].count(True) == 1
    missing = load_folder(text).keys() - load_folder(tmp_path / "back").keys()
    assert missing == {
        f"model.layers.{4 + n}.transformer.shared_head.output.weight" for n in range(2)
    }


#: The same model, in the words of transformers 5 and with other spellings of the Hub's.
SAID = {
    "lists": {"moe_layers_enum": [1, 2, 3], "mtp_layer_types": AHEAD, "share_expert_dims": 20},
    "transformers": {
        "moe_layers_enum": None,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "mtp_mlp_layer_types": ["dense", "dense"],
        "attention_other_setting": None,
        "num_sliding_attention_heads": HEADS["sliding_attention"],
        "num_attention_groups": None,
        "num_key_value_heads": 2,
        "moe_num_experts": None,
        "n_routed_experts": 4,
    },
}


@pytest.mark.parametrize("changes", SAID.values(), ids=SAID)
def test_a_config_may_say_it_in_other_words(text, tmp_path, changes):
    model = say(text, tmp_path / "hf", **changes)
    found = convert(model, tmp_path / "out", dtype="float32")
    assert_same(found, list_wanted(load_folder(text), ""))


FALSE = {
    "too few kinds": ({"layer_types": ["full_attention"] * 3}, "for each of 4 layers"),
    "an unknown kind": ({"layer_types": ["full_attention", "linear"] * 3}, "for each of 4 layers"),
    "too many ahead": ({"mtp_layer_types": ["full_attention"]}, "for each of 2 layers"),
    "experts ahead": ({"moe_layers_enum": "1,2,3,4"}, "prediction has experts"),
    "no numbers": ({"moe_layers_enum": "1,2,x"}, "expected numbers"),
    "another number of heads": (
        {"attention_other_setting": {"num_attention_heads": 4}},
        "g_proj.weight: query, key and value are [48, 32], [16, 32], [16, 32], expected 32,",
    ),
    "other heads": ({"num_attention_heads": 2}, "expected 16, 16, 16 rows (2 heads"),
}


@pytest.mark.parametrize(("changes", "match"), FALSE.values(), ids=FALSE)
def test_what_cannot_be_true_is_refused(text, tmp_path, changes, match):
    model = say(text, tmp_path / "hf", **changes)
    with pytest.raises(MappingError) as caught:
        convert(model, tmp_path / "out")
    assert any(match in said for said in (str(caught.value), *caught.value.names))


@pytest.mark.parametrize(
    ("layers", "match"), [("stacked", "cannot be stacked"), ("hybrid", "differ in heads")]
)
def test_layers_of_two_kinds_have_one_layout(text, tmp_path, layers, match):
    with pytest.raises(MappingError, match=match):
        convert(text, tmp_path / "out", layers=layers)


def test_gates_that_training_has_driven_apart_are_refused(text, tmp_path):
    found = convert(text, tmp_path / "there", dtype="float32")
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    gate = 3 * HEAD  # after the query heads of the first group
    found[name][gate + 1, 0] += 0.25
    found[name][gate + HEAD + 2, 5] -= 0.5
    changed = write_again(found, tmp_path / "changed")
    with pytest.raises(MappingError, match="1 tensor has a gate of 8 rows for each head") as caught:
        merge_megatron(changed, tmp_path / "out", MergeOptions(config=text, write=UNSYNCED))
    assert caught.value.names == (
        f"{name} -> model.layers.1.self_attn.g_proj.weight: 2 of 48 rows differ from the first of"
        " their head, by 0.5 at most",
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(MappingError, match="no model there computes the same"):
        verify_checkpoint(changed, text)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["whole", "text"])
def test_megatron_core_loads_the_language_model(kind, request, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    model = request.getfixturevalue(kind)
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=checked))
    towers = ("vision_model.", "image_insert_embedding.")
    language = [name for name in loaded(tmp_path / "out") if not name.startswith(towers)]
    assert result.load_check.num_tensors == len(language)
