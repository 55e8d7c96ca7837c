"""`to-mcore` against real megatron-core: what it loads of ours, and what it writes itself."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from ckpt_tool import (
    ToMcoreOptions,
    convert_to_mcore,
    merge_fsdp,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.megatron.keys import name_engine_keys
from ckpt_tool.tensors.equality import are_equal
from tests.real.megatron_models import NAMES
from tests.support import megatron
from tests.support.megatron import FUSED, HYBRID, LOADED, NATIVE, PER_LAYER


def metadata_of(folder: Path) -> Metadata:
    return pickle.loads((folder / ".metadata").read_bytes())


def objects_of(folder: Path) -> set[str]:
    entries = metadata_of(folder).state_dict_metadata
    return {name for name, entry in entries.items() if isinstance(entry, BytesStorageMetadata)}


def assert_close(found: Path, reference: Path) -> None:
    expected, logits = load_file(reference), load_file(found)
    assert "logits" in logits
    for name, values in logits.items():
        assert values.shape == expected[name].shape
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), LOADED)
def test_logits_of_real_ranks_are_those_of_transformers(megatron_cases, name, size):
    reference = megatron_cases / name / "reference.safetensors"
    assert_close(megatron.logits(megatron_cases, name, size), reference)


@pytest.mark.parametrize("name", PER_LAYER)
def test_logits_of_layers_with_keys_of_their_own(megatron_cases, name):
    found = megatron.logits(megatron_cases, f"{name}/per-layer", "tp1")
    assert_close(found, megatron_cases / name / "reference.safetensors")


@pytest.mark.parametrize(("name", "size"), HYBRID)
def test_logits_of_a_hybrid_model(megatron_cases, name, size):
    found = megatron.logits(megatron_cases, f"{name}/hybrid", size)
    assert_close(found, megatron_cases / name / "reference.safetensors")


@pytest.mark.parametrize(("name", "size"), FUSED)
def test_logits_with_one_down_projection(megatron_cases, name, size):
    found = megatron.logits(megatron_cases, f"{name}/fused", size)
    assert_close(found, megatron_cases / name / "reference.safetensors")


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in HYBRID))
def test_a_hybrid_model_is_what_megatron_core_writes(megatron_cases, name):
    ours = megatron.ours(megatron_cases, f"{name}/hybrid")
    native = megatron.native(megatron_cases, f"{name}/hybrid", "tp1")
    found = open_checkpoint(ours)
    engine = name_engine_keys(open_checkpoint(native))  # real ones have Transformer Engine's layers
    for key, expected in open_checkpoint(native).items():
        other = found[engine[key]]
        assert (other.shape, other.dtype) == (expected.shape, expected.dtype), key
        assert are_equal(other, expected, 1), key
    assert set(engine.values()) == set(found)
    wanted = objects_of(native) - {"common_state/shard_0_1"}
    assert wanted
    assert wanted <= objects_of(ours)


def test_a_model_that_sees_has_no_hybrid_form(checkpoints, tmp_path):
    merge_fsdp([checkpoints["fsdp2_vlm_w2"] / "actor"], tmp_path / "hf")
    with pytest.raises(MappingError, match="has a vision tower"):
        convert_to_mcore(tmp_path / "hf", tmp_path / "out", ToMcoreOptions(layers="hybrid"))


@pytest.mark.parametrize(("name", "size"), NATIVE)
def test_tensors_are_those_that_megatron_core_writes(megatron_cases, name, size):
    ours = open_checkpoint(megatron.ours(megatron_cases, name))
    native = open_checkpoint(megatron.native(megatron_cases, name, size))
    assert set(ours) == set(native)
    for key, expected in native.items():
        assert (ours[key].shape, ours[key].dtype) == (expected.shape, expected.dtype), key
        assert are_equal(ours[key], expected, 1), key


@pytest.mark.parametrize(("name", "size"), NATIVE)
def test_every_extra_state_of_megatron_core_is_there(megatron_cases, name, size):
    wanted = objects_of(megatron.native(megatron_cases, name, size))
    wanted.discard("common_state/shard_0_1")  # since 0.19 what was in common.pt
    assert wanted
    assert wanted <= objects_of(megatron.ours(megatron_cases, name))


@pytest.mark.parametrize("name", NAMES)
def test_ours_and_megatron_cores_verify_as_the_hugging_face_model(megatron_cases, name):
    reference = megatron.hf(megatron_cases, name)
    for folder in (megatron.ours, lambda out, name: megatron.native(out, name, "tp1")):
        result = verify_checkpoint(folder(megatron_cases, name), reference)
        assert result.equal
        assert result.exact
        assert result.num_compared == len(open_checkpoint(reference))


def test_prediction_layers_that_are_not_in_the_weights_are_warned_of(megatron_cases, tmp_path):
    model = tmp_path / "hf"
    model.mkdir()
    for path in megatron.hf(megatron_cases, "deepseek_v3").iterdir():
        (model / path.name).symlink_to(path)
    config = (model / "config.json").read_text()
    (model / "config.json").unlink()
    said = config.replace('"num_nextn_predict_layers": 0', '"num_nextn_predict_layers": 1')
    assert said != config
    (model / "config.json").write_text(said)
    result = convert_to_mcore(model, tmp_path / "out")
    assert "multi-token prediction" in result.warnings[0]
    assert set(open_checkpoint(tmp_path / "out")) == set(
        open_checkpoint(megatron.ours(megatron_cases, "deepseek_v3"))
    )


def test_layers_that_differ_are_not_stacked(megatron_cases, tmp_path):
    with pytest.raises(MappingError, match="cannot be stacked"):
        convert_to_mcore(
            megatron.hf(megatron_cases, "glm4_moe"),
            tmp_path / "out",
            ToMcoreOptions(layers="stacked"),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ToMcoreOptions(dtype="int8"),
        ToMcoreOptions(layout="flat"),
        ToMcoreOptions(layers="both"),
        ToMcoreOptions(vocab_multiple=0),
        ToMcoreOptions(jobs=-1),
    ],
)
def test_choices_that_do_not_exist_are_refused(megatron_cases, tmp_path, options):
    with pytest.raises(UsageError):
        convert_to_mcore(megatron.hf(megatron_cases, "llama"), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
