"""What a class ties, whatever its modules are called: proven, dropped, and known to verify."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool.common.errors import MappingError
from ckpt_tool.operations.merge import merge_fsdp, merge_megatron
from ckpt_tool.operations.options import MergeOptions, ToMcoreOptions
from ckpt_tool.operations.to_mcore import convert_to_mcore
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions, WriteResult
from tests.support.every_class import build_tiny
from tests.support.merging import assert_same, load_folder, write_rank
from tests.support.tiny_models import build
from tests.support.versions import needs_transformers_5

pytestmark = [pytest.mark.slow, needs_transformers_5]

#: Model type, class, what is tied, and to what.
TIED = [
    ("t5", "T5ForConditionalGeneration", "lm_head.weight", "shared.weight"),
    ("bert", "BertLMHeadModel", "cls.predictions.decoder.weight",
     "bert.embeddings.word_embeddings.weight"),
    ("mamba", "MambaForCausalLM", "lm_head.weight", "backbone.embeddings.weight"),
    ("whisper", "WhisperForCausalLM", "proj_out.weight", "model.decoder.embed_tokens.weight"),
]  # fmt: skip
models = pytest.mark.parametrize(("model_type", "class_name", "copy", "source"), TIED)


def write(folder: Path, model, state: dict[str, torch.Tensor]) -> Path:
    model.save_pretrained(folder / "saved")
    (folder / "in" / "huggingface").mkdir(parents=True)
    shutil.copy(folder / "saved" / "config.json", folder / "in" / "huggingface")
    return write_rank(folder / "in", state)


def merge(folder: Path, **options) -> WriteResult:
    write = WriteOptions(fsync=False, check_load=True)
    return merge_fsdp([folder / "in"], folder / "out", MergeOptions(write=write, **options))


def clones(model) -> dict[str, torch.Tensor]:
    """Its state dict, every tensor in memory of its own."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@models
def test_a_copy_is_dropped_and_said(tmp_path, model_type, class_name, copy, source):
    model = build_tiny(model_type, class_name)
    write(tmp_path, model, clones(model))
    result = merge(tmp_path)
    assert result.dropped[copy] == f"equal to {source}, to which the class ties it"
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "saved"))


@models
def test_a_copy_that_differs_is_refused_by_name(tmp_path, model_type, class_name, copy, source):
    model = build_tiny(model_type, class_name)
    state = clones(model)
    state[copy][-1, -1] += 1
    write(tmp_path, model, state)
    with pytest.raises(MappingError, match="from others that the class holds") as refused:
        merge(tmp_path)
    assert f"{copy}: tied to {source}" in refused.value.names
    assert "`tie_word_embeddings=False`" in refused.value.hint
    assert not (tmp_path / "out").exists()


@models
def test_where_only_the_copy_was_saved_it_is_the_one(
    tmp_path, model_type, class_name, copy, source
):
    model = build_tiny(model_type, class_name)
    state = clones(model)
    del state[source]
    write(tmp_path, model, state)
    assert source not in merge(tmp_path).dropped
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "saved"))


def test_untied_on_request_both_are_written(tmp_path):
    model = build_tiny("mamba", "MambaForCausalLM")
    state = clones(model)
    state["lm_head.weight"][0, 0] += 1
    write(tmp_path, model, state)
    assert merge(tmp_path, tie_word_embeddings=False).dropped == {}
    assert_same(load_folder(tmp_path / "out"), state)
    opened = type(model).from_pretrained(tmp_path / "out")
    assert torch.equal(opened.lm_head.weight, state["lm_head.weight"])


def test_tied_by_the_config_and_not_by_the_class_both_are_written(tmp_path):
    model = build_tiny("bigbird_pegasus", "BigBirdPegasusForCausalLM")
    assert model.config.tie_word_embeddings
    write(tmp_path, model, clones(model))
    merge(tmp_path)
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "saved"))


@models
def test_verify_takes_copies_on_either_side(tmp_path, model_type, class_name, copy, source):
    model = build_tiny(model_type, class_name)
    state = clones(model)
    ranks = write(tmp_path, model, state)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "saved", whole)
    save_file(state, whole / "model.safetensors", {"format": "pt"})
    for reference in (tmp_path / "saved", whole):
        assert verify_checkpoint(ranks, reference).equal
    state[copy][0, 0] += 1
    save_file(state, whole / "model.safetensors", {"format": "pt"})
    found = verify_checkpoint(ranks, whole)
    assert [each.name for each in found.mismatched] == [copy]


def test_a_copy_that_differs_is_a_difference_to_a_reference_without_it(tmp_path):
    model = build_tiny("mamba", "MambaForCausalLM")
    state = clones(model)
    state["lm_head.weight"][0, 0] += 1
    ranks = write(tmp_path, model, state)
    assert verify_checkpoint(ranks, tmp_path / "saved").unexpected == ["lm_head.weight"]


def test_verify_knows_a_tied_head_by_its_name_on_the_hub(tmp_path):
    model = build_tiny("gpt_neox", "GPTNeoXForCausalLM", tied=True)
    state = clones(model)
    ranks = write(tmp_path, model, state)
    assert verify_checkpoint(ranks, tmp_path / "saved").tied.keys() == {"embed_out.weight"}
    assert verify_checkpoint(ranks, tmp_path / "saved").equal
    state["lm_head.weight"][0, 0] += 1
    ranks = write_rank(tmp_path / "in", state)
    assert verify_checkpoint(ranks, tmp_path / "saved").unexpected == ["embed_out.weight"]


def test_a_head_of_its_own_is_one_where_only_the_class_ties(tmp_path):
    """Mistral-Small-3.1: config.json says nothing, and Mistral3Config of transformers 5 ties."""
    model = build("mistral3")
    model.save_pretrained(tmp_path / "hf")
    tensors = load_folder(tmp_path / "hf")
    head = "language_model.lm_head.weight"
    tensors[head] = tensors["language_model.model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    for part in (raw, raw["text_config"]):
        part.pop("tie_word_embeddings", None)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(raw))
    write = WriteOptions(fsync=False, check_load=True)
    unchecked = ToMcoreOptions(write=WriteOptions(fsync=False))
    convert_to_mcore(tmp_path / "hf", tmp_path / "mcore", unchecked)
    options = MergeOptions(config=tmp_path / "hf", write=write)
    merge_megatron(tmp_path / "mcore", tmp_path / "out", options)
    assert_same(load_folder(tmp_path / "out"), tensors)
    opened = type(model).from_pretrained(tmp_path / "out")
    assert torch.equal(opened.lm_head.weight, tensors[head])
