"""Experts that the Hub has fused: written as they are, compared with each form."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from ckpt_tool.common.errors import MappingError
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import assert_same, load_folder, write_rank
from tests.support.tiny_models import build
from tests.support.versions import needs_transformers_5

pytestmark = [pytest.mark.slow, needs_transformers_5]
OPTIONS = MergeOptions(write=WriteOptions(fsync=False, check_load=True))


@pytest.fixture
def model():
    return build("qwen3_5_moe")


@pytest.fixture
def ranks(model, tmp_path: Path) -> Path:
    """As it is in memory."""
    model.config.save_pretrained(tmp_path / "ranks" / "huggingface")
    return write_rank(tmp_path / "ranks", model.state_dict())


@pytest.fixture
def split(model, tmp_path: Path) -> Path:
    """A folder with each expert by itself, as transformers writes a new model."""
    model.save_pretrained(tmp_path / "split")
    return tmp_path / "split"


def test_they_stay_fused_and_the_class_opens_them(model, ranks, tmp_path):
    result = merge_fsdp([ranks], tmp_path / "out", OPTIONS)
    assert_same(load_folder(tmp_path / "out"), model.state_dict())
    assert result.load_check.architecture == "Qwen3_5MoeForConditionalGeneration"


def test_those_that_were_apart_stay_apart(model, split, tmp_path):
    apart = load_folder(split)
    assert any(".experts.0." in name for name in apart)
    model.config.save_pretrained(tmp_path / "in" / "huggingface")
    write_rank(tmp_path / "in", apart)
    assert merge_fsdp([tmp_path / "in"], tmp_path / "out", OPTIONS).load_check is not None
    assert_same(load_folder(tmp_path / "out"), apart)


def test_both_forms_are_the_same_model(ranks, split, tmp_path):
    merge_fsdp([ranks], tmp_path / "out", OPTIONS)
    for left, right in ((ranks, split), (tmp_path / "out", split), (split, tmp_path / "out")):
        found = verify_checkpoint(left, right)
        assert found.equal
        assert found.num_compared == len(load_folder(split))
    assert verify_checkpoint(ranks, tmp_path / "out").equal


def test_each_layer_has_a_form_of_its_own(model, split, tmp_path):
    """Qwen3.6 has the layer that predicts further fused, and Qwen3.5 has not."""
    first = "model.language_model.layers.0.mlp.experts."
    apart = {name: t for name, t in load_folder(split).items() if name.startswith(first)}
    fused = {name: t for name, t in model.state_dict().items() if not name.startswith(first)}
    assert len(apart) > 2
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    save_file(apart | fused, mixed / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(mixed)
    whole = tmp_path / "whole"
    whole.mkdir()
    save_file(model.state_dict(), whole / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(whole)
    for left, right in ((mixed, whole), (whole, mixed), (mixed, split)):
        found = verify_checkpoint(left, right)
        assert found.equal, found
    assert verify_checkpoint(mixed, whole).num_compared == len(apart | fused)


def test_a_missing_half_of_them_is_named(model, tmp_path):
    state = model.state_dict()
    gone = next(name for name in state if name.endswith("experts.down_proj"))
    del state[gone]
    model.config.save_pretrained(tmp_path / "in" / "huggingface")
    write_rank(tmp_path / "in", state)
    with pytest.raises(MappingError) as refused:
        merge_fsdp([tmp_path / "in"], tmp_path / "out", OPTIONS)
    shape = list(model.state_dict()[gone].shape)
    assert list(refused.value.names) == [f"missing: {gone} {shape}"]
