"""Qwen3.5 that sees and has experts: Megatron-Bridge's names, packed experts, what is rounded."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.megatron.convert import restore_model
from tests.support.merging import assert_same, load_folder
from tests.support.saved import assert_equal, write_tensors
from tests.support.tiny_models import build
from tests.support.versions import require_transformers_5

Tensors = dict[str, torch.Tensor]
UNSYNCED = WriteOptions(fsync=False)
TRUNK, AHEAD = "model.language_model.", "mtp.layers.0."

#: Rows of Megatron-Bridge 0.6.2 of one tensor on both sides: its name, and that on the Hub.
BRIDGE = """
language_model.embedding.word_embeddings.weight | model.language_model.embed_tokens.weight
language_model.output_layer.weight | lm_head.weight
language_model.decoder.final_layernorm.weight | model.language_model.norm.weight
language_model.decoder.layers.*.mlp.router.weight | model.language_model.layers.*.mlp.gate.weight
language_model.decoder.layers.*.pre_mlp_layernorm.weight \
| model.language_model.layers.*.post_attention_layernorm.weight
language_model.decoder.layers.*.self_attention.q_layernorm.weight \
| model.language_model.layers.*.self_attn.q_norm.weight
language_model.decoder.layers.*.self_attention.k_layernorm.weight \
| model.language_model.layers.*.self_attn.k_norm.weight
language_model.decoder.layers.*.self_attention.linear_proj.weight \
| model.language_model.layers.*.self_attn.o_proj.weight
language_model.decoder.layers.*.self_attention.out_proj.weight \
| model.language_model.layers.*.linear_attn.out_proj.weight
language_model.decoder.layers.*.self_attention.A_log \
| model.language_model.layers.*.linear_attn.A_log
language_model.decoder.layers.*.self_attention.dt_bias \
| model.language_model.layers.*.linear_attn.dt_bias
language_model.decoder.layers.*.mlp.experts.experts.linear_fc1.weight \
| model.language_model.layers.*.mlp.experts.gate_up_proj
language_model.decoder.layers.*.mlp.experts.experts.linear_fc2.weight \
| model.language_model.layers.*.mlp.experts.down_proj
language_model.decoder.layers.*.mlp.shared_experts.linear_fc2.weight \
| model.language_model.layers.*.mlp.shared_expert.down_proj.weight
language_model.decoder.layers.*.mlp.shared_experts.gate_weight \
| model.language_model.layers.*.mlp.shared_expert_gate.weight
language_model.mtp.layers.0.eh_proj.weight | mtp.fc.weight
language_model.mtp.layers.0.enorm.weight | mtp.pre_fc_norm_embedding.weight
language_model.mtp.layers.0.hnorm.weight | mtp.pre_fc_norm_hidden.weight
language_model.mtp.layers.0.final_layernorm.weight | mtp.norm.weight
language_model.mtp.layers.0.transformer_layer.self_attention.linear_qkv.layer_norm_weight \
| mtp.layers.0.input_layernorm.weight
vision_model.decoder.layers.*.self_attention.linear_proj.? | model.visual.blocks.*.attn.proj.?
vision_model.decoder.layers.*.mlp.linear_fc1.? | model.visual.blocks.*.mlp.linear_fc1.?
vision_model.decoder.layers.*.mlp.linear_fc2.? | model.visual.blocks.*.mlp.linear_fc2.?
vision_model.decoder.layers.*.self_attention.linear_qkv.layer_norm_? | model.visual.blocks.*.norm1.?
vision_model.decoder.layers.*.mlp.linear_fc1.layer_norm_? | model.visual.blocks.*.norm2.?
vision_model.merger.patch_norm.? | model.visual.merger.norm.?
vision_model.merger.linear_fc1.? | model.visual.merger.linear_fc1.?
vision_model.merger.linear_fc2.? | model.visual.merger.linear_fc2.?
vision_model.patch_embed.proj.? | model.visual.patch_embed.proj.?
vision_model.pos_embed.weight | model.visual.pos_embed.weight
"""


def pack(tensors: Tensors, stem: str) -> Tensors:
    """With the experts of the layers below ``stem`` in one tensor, as released."""
    found = dict(tensors)
    layers = {
        m[1] for name in tensors if (m := re.match(rf"({re.escape(stem)}.*\.experts\.)0\.", name))
    }
    for layer in layers:
        experts = [
            [found.pop(f"{layer}{n}.{part}_proj.weight") for part in ("gate", "up", "down")]
            for n in range(sum(name.startswith(layer) for name in tensors) // 3)
        ]
        found[f"{layer}gate_up_proj"] = torch.stack([torch.cat(each[:2]) for each in experts])
        found[f"{layer}down_proj"] = torch.stack([each[2] for each in experts])
    return found


def add_ahead(tensors: Tensors, hidden: int) -> Tensors:
    """With a layer that predicts further, whose tensors are another layer's with other values."""
    full = next(name for name in tensors if name.endswith("self_attn.q_proj.weight"))
    stem = full.removesuffix("self_attn.q_proj.weight")
    layer = {name: t for name, t in tensors.items() if name.startswith(stem)}
    names = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    found = {AHEAD + name.removeprefix(stem): t + 1 for name, t in layer.items()}
    found |= {f"mtp.{name}.weight": torch.rand(hidden) for name in names}
    return tensors | found | {"mtp.fc.weight": torch.rand(hidden, 2 * hidden)}


def write(folder: Path, tensors: Tensors, config: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, dict]:
    """All experts one by one, as transformers saves them, and the config."""
    require_transformers_5()
    folder = tmp_path_factory.mktemp("qwen3_5_moe") / "hf"
    build("qwen3_5_moe").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    return add_ahead(load_folder(folder), config["text_config"]["hidden_size"]), config


@pytest.fixture(scope="module")
def model(saved, tmp_path_factory) -> Path:
    """As Qwen3.5 is released: packed, but for the experts of the layer that predicts further."""
    tensors, config = saved
    return write(tmp_path_factory.mktemp("released") / "hf", pack(tensors, TRUNK), config)


def test_there_and_back_is_the_identity(model, tmp_path):
    checked = WriteOptions(fsync=False, verify=True)
    result = convert_to_mcore(model, tmp_path / "there", ToMcoreOptions(write=checked))
    assert [(cast.source, cast.target, cast.max_abs_error) for cast in result.casts] == [
        ("float64", "float32", 0.0)
    ]
    back = MergeOptions(config=model, write=WriteOptions(fsync=False, check_load=True))
    merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))


def test_every_tensor_of_one_is_called_as_in_megatron_bridge(model, tmp_path):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    found, hub = open_checkpoint(tmp_path / "out"), load_folder(model)
    for line in BRIDGE.strip().splitlines():
        ours, theirs = (part.strip() for part in line.split("|"))
        pattern = re.escape(theirs).replace(r"\*", r"(\d+)").replace(r"\?", "(weight|bias)")
        matched = [one for name in hub if (one := re.fullmatch(pattern, name))]
        assert matched, line
        for one in matched:
            parts = iter(one.groups())
            name = re.sub(r"[*?]", lambda _, parts=parts: next(parts), ours)
            assert torch.equal(found[name].read(), hub[one[0]]), name


@pytest.mark.parametrize("prefix", ["visual.", "model.visual.", "visual.visual."])
def test_the_tower_that_others_take_from_transformers(model, tmp_path, prefix):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    hub = load_folder(model)
    tower = {name: tensor for name, tensor in hub.items() if name.startswith("model.visual.")}
    found = {name: t.read() for name, t in open_checkpoint(tmp_path / "out").items()}
    found = {name: t for name, t in found.items() if name.startswith("language_model.")}
    found |= {prefix + name.removeprefix("model.visual."): t for name, t in tower.items()}
    stored = write_tensors(tmp_path / "m.safetensors", found)
    assert_equal(restore_model(stored, load_config(model)).tensors, hub)


@pytest.mark.parametrize("packed", [(), (TRUNK, AHEAD), (AHEAD,)], ids=str)
def test_experts_in_either_form_make_the_same(saved, model, tmp_path, packed):
    tensors, config = saved
    for stem in packed:
        tensors = pack(tensors, stem)
    other = write(tmp_path / "other", tensors, config)
    for name, of in {"ours": model, "theirs": other}.items():
        convert_to_mcore(of, tmp_path / name, ToMcoreOptions(write=UNSYNCED))
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("ours", "theirs"))
    assert_same(*({name: t.read() for name, t in each.items()} for each in (ours, theirs)))


@pytest.fixture(scope="module")
def there(model, tmp_path_factory) -> Path:
    """What is the same of all forms, as the test before this shows."""
    out = tmp_path_factory.mktemp("there") / "mcore"
    convert_to_mcore(model, out, ToMcoreOptions(write=UNSYNCED))
    return out


def merge(there: Path, config: Path, out: Path) -> Tensors:
    unchecked = WriteOptions(fsync=False, check_load=False)
    merge_megatron(there, out, MergeOptions(config=config, write=unchecked))
    return load_folder(out)


@pytest.mark.parametrize("packed", [(), (TRUNK,), (TRUNK, AHEAD), (AHEAD,)], ids=str)
def test_experts_come_back_as_the_weights_beside_the_config_have_them(
    saved, there, tmp_path, packed
):
    """The first is what transformers saves, then Qwen3.5 and Qwen3.6 as they are released."""
    tensors, config = saved
    for stem in packed:
        tensors = pack(tensors, stem)
    other = write(tmp_path / "other", tensors, config)
    assert_same(merge(there, other, tmp_path / "back"), load_folder(other))
    assert verify_checkpoint(there, other).equal
    assert verify_checkpoint(tmp_path / "back", other).equal


def test_an_index_beside_the_config_is_enough(saved, there, tmp_path):
    tensors, config = saved
    tensors = pack(pack(tensors, TRUNK), AHEAD)
    other = write(tmp_path / "other", tensors, config)
    (other / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(merge(there, other, tmp_path / "back"), tensors)


@pytest.mark.parametrize("beside", [b"", b"version https://git-lfs.github.com/spec/v1", None])
def test_without_names_experts_come_back_as_qwen3_5_is_released(model, there, tmp_path, beside):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((model / "config.json").read_bytes())
    if beside is not None:
        (other / "model.safetensors").write_bytes(beside)
    assert_same(merge(there, other, tmp_path / "back"), load_folder(model))


def test_the_model_that_fills_says_it_too(saved, there, tmp_path):
    tensors, config = saved
    other = write(tmp_path / "other", pack(pack(tensors, TRUNK), AHEAD), config)
    bare = tmp_path / "config"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(config))
    unchecked = WriteOptions(fsync=False, check_load=False)
    options = MergeOptions(config=bare, fill_from=other, write=unchecked)
    merge_megatron(there, tmp_path / "back", options)
    assert_same(load_folder(tmp_path / "back"), load_folder(other))


def test_a_small_norm_is_rounded_and_said(model, tmp_path):
    tensors = {name: t.bfloat16() for name, t in load_folder(model).items()}
    norm = next(name for name in tensors if name.endswith("linear_attn.norm.weight"))
    tensors[norm] = torch.full_like(tensors[norm], 1.0)
    tensors[norm][0] = 2.0**-10
    config = json.loads((model / "config.json").read_text())
    other = write(tmp_path / "hf", tensors, config | {"dtype": "bfloat16"})
    checked = WriteOptions(fsync=False, verify=True)
    result = convert_to_mcore(other, tmp_path / "out", ToMcoreOptions(write=checked))
    (cast,) = [cast for cast in result.casts if cast.offset == 1.0]
    assert cast.source == "float64"
    assert (cast.target, cast.max_abs_error) == ("bfloat16", 2.0**-10)
    result = verify_checkpoint(tmp_path / "out", other)
    assert not result.equal
    assert [row.name for row in result.mismatched] == [norm]


@pytest.mark.real
def test_modules_of_megatron_core_load_it(model, tmp_path):
    """The language model and the tower's blocks; what is around these is of no such module."""
    options = ToMcoreOptions(write=WriteOptions(fsync=False, check_load=True))
    result = convert_to_mcore(model, tmp_path / "out", options)
    assert result.load_check.architecture == "GPTModel and vision tower (its blocks)"
    around = r"vision_model\.(patch_embed|pos_embed|merger)\."
    inside = [name for name in open_checkpoint(tmp_path / "out") if not re.match(around, name)]
    assert result.load_check.num_tensors == len(inside)
