"""What torchtitan saved, merged, against what its own adapters make of it.

The fixtures are written by `tests/real/write_torchtitan_fixtures.py`, which says how.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool import (
    CheckpointError,
    MappingError,
    MergeOptions,
    NameOptions,
    WriteOptions,
    merge_dcp,
    open_checkpoint,
    verify_checkpoint,
)
from tests.real.write_torchtitan_fixtures import ALL, FIXTURES, FUSED, WHOLE
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import save_dcp
from tests.support.versions import needs_transformers_5

pytestmark = [
    needs_transformers_5,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

Tensors = dict[str, torch.Tensor]


def state_of(name: str) -> Tensors:
    return load_file(FIXTURES / f"torchtitan{name}" / "titan.safetensors")


def adapted(name: str) -> Tensors:
    """What the adapter made of it, with what it leaves out; and the names of the text model."""
    found = load_file(FIXTURES / f"torchtitan{name}" / "reference.safetensors")
    found = {key.removeprefix("language_model."): t for key, t in found.items()}
    complete = {"gpt_oss": with_experts, "llama4": with_dense, "deepseek_v2": without_bias}
    kind = name.partition("_")[2]
    found = complete.get(kind, lambda tensors, _: tensors)(found, state_of(name))
    if "model.layers.2.enorm.weight" in found:  # on the Hub, MTP's layer has these as well
        found["model.layers.2.embed_tokens.weight"] = found["model.embed_tokens.weight"]
        found["model.layers.2.shared_head.head.weight"] = found["lm_head.weight"]
    return found


def with_experts(found: Tensors, state: Tensors) -> Tensors:
    """Its adapter has names of 0.3 that the model has not, and of 0.2 those of packed weights."""
    kept = {key: t for key, t in found.items() if ".experts." not in key}
    for key, tensor in state.items():
        layer, is_expert, rest = key.partition("mlp")
        if is_expert:
            kind = "gate_up_proj" if rest[0] == "1" else "down_proj"
            end = "_bias" if "bias" in rest else ""
            to = f"model.layers.{layer.split('.')[1]}.mlp.experts.{kind}{end}"
            kept[to] = tensor if end else tensor.transpose(1, 2).contiguous()
    return kept


def with_dense(found: Tensors, state: Tensors) -> Tensors:
    """Its adapter leaves the layers without experts out."""
    for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        dense = state[f"layers.0.feed_forward.{old}.weight"]
        found[f"model.layers.0.feed_forward.{new}.weight"] = dense
    return found


def without_bias(found: Tensors, state: Tensors) -> Tensors:
    """The adapter is that of DeepSeek-V3, whose router has a bias."""
    return {key: t for key, t in found.items() if not key.endswith("e_score_correction_bias")}


def merge(source: Path, out: Path, name: str, **more):
    config = FIXTURES / f"torchtitan{name}"
    return merge_dcp(source, out, MergeOptions(config, write=WriteOptions(fsync=False), **more))


def source_of(name: str, folder: Path) -> Path:
    saved = FIXTURES / f"torchtitan{name}" / "checkpoint"
    return saved if name in WHOLE else save_dcp(state_of(name), folder / "in")


def test_the_fixtures_are_all_there():
    assert sorted(path.name for path in FIXTURES.glob("torchtitan*")) == sorted(
        f"torchtitan{name}" for name in ALL
    )
    for name in ALL:
        old = any(".moe.experts." in key or key.startswith("output.") for key in state_of(name))
        assert old is name.startswith("0.2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_what_it_saved_is_what_its_adapter_makes_of_it(tmp_path, name):
    source = source_of(name, tmp_path)
    assert not open_checkpoint(source).problems
    result = merge(source, tmp_path / "out", name)
    assert_same(load_folder(tmp_path / "out"), adapted(name))
    assert verify_checkpoint(source, tmp_path / "out").equal
    assert verify_checkpoint(tmp_path / "out", source).equal
    class_has_it = "e_score_correction_bias" in " ".join(adapted(name))
    biased = any("expert_bias" in key for key in state_of(name))
    assert any("expert_bias" in key for key in result.dropped) is (biased and not class_has_it)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSED)
def test_one_layer_for_query_key_and_value(tmp_path, name):
    fused = load_file(FIXTURES / f"torchtitan{name}" / "fused.safetensors")
    assert any(".wqkv." in key for key in fused)
    merge(save_dcp(fused, tmp_path / "in"), tmp_path / "out", name)
    assert_same(load_folder(tmp_path / "out"), adapted(name))


@pytest.mark.slow
def test_beside_the_state_of_a_run_and_under_a_name_of_its_own(tmp_path):
    state = {"model": state_of("0.3_qwen3_moe"), "optimizer": {"state": torch.ones(3)}}
    source = save_dcp(state | {"train_state": {"step": torch.tensor(7)}}, tmp_path / "in")
    result = merge(source, tmp_path / "out", "0.3_qwen3_moe")
    assert_same(load_folder(tmp_path / "out"), adapted("0.3_qwen3_moe"))
    assert {"optimizer.*", "train_state.*"} <= result.dropped.keys()
    named = NameOptions(prefix="model.")
    merge(source, tmp_path / "named", "0.3_qwen3_moe", names=named)
    assert_same(load_folder(tmp_path / "named"), adapted("0.3_qwen3_moe"))


def test_a_layer_that_is_not_there(tmp_path):
    state = state_of("0.3_llama3")
    short = {key: t for key, t in state.items() if not key.startswith("layers.1.")}
    with pytest.raises(MappingError) as refused:
        merge(save_dcp(short, tmp_path / "in"), tmp_path / "out", "0.3_llama3")
    assert any("model.layers.1.self_attn.q_proj.weight" in name for name in refused.value.names)
    assert not (tmp_path / "out").exists()


def test_experts_of_another_number_than_the_config_says(tmp_path):
    state = state_of("0.3_qwen3_moe")
    fewer = {key: t[:2].clone() if "inner_experts" in key else t for key, t in state.items()}
    with pytest.raises(MappingError) as refused:
        merge(save_dcp(fewer, tmp_path / "in"), tmp_path / "out", "0.3_qwen3_moe")
    assert len(refused.value.names) == 6
    said = "layers.0.moe.routed_experts.inner_experts.w1_EFD: [2, 6, 16], expected [4, out, in]"
    assert said in refused.value.names
    assert "config.json" in str(refused.value)
    assert not (tmp_path / "out").exists()


def damage(name: str, tensor: str, out: Path) -> Path:
    """The checkpoint with a bit of a tensor flipped in its file, or, of none, with files cut."""
    shutil.copytree(FIXTURES / f"torchtitan{name}" / "checkpoint", out)
    if not tensor:
        for file in out.glob("*.distcp"):
            file.write_bytes(file.read_bytes()[:-400])
        return out
    region = open_checkpoint(out)[tensor].chunks[-1].region
    content = bytearray(Path(region.path).read_bytes())
    content[region.offset] ^= 1
    Path(region.path).write_bytes(content)
    return out


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("0.3_llama3", "layers.0.attention.qkv_linear.wq.weight"),
        ("0.3_qwen3_moe", "layers.1.moe.routed_experts.inner_experts.w2_EDF"),
        ("0.2_gpt_oss", "layers.1.moe.experts.mlp1_weight"),
        ("0.3_llama3", ""),
    ],
)
def test_damage_is_found(tmp_path, name, tensor):
    source = damage(name, tensor, tmp_path / "in")
    config = FIXTURES / f"torchtitan{name}"
    options = MergeOptions(config, write=WriteOptions(fsync=False, check_crc=True))
    with pytest.raises(CheckpointError) as refused:
        merge_dcp(source, tmp_path / "out", options)
    said = " ".join(map(str, refused.value.problems))
    assert ".distcp" in said
    assert tensor in said
    assert not (tmp_path / "out").exists()
