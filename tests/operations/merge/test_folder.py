"""The folder around the weights tells the truth, whatever lay beside the checkpoint."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from ckpt_tool.common.errors import CheckpointError, MappingError, UsageError
from ckpt_tool.operations.merge import merge_dcp, merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.to_mcore import convert_to_mcore
from ckpt_tool.plans.options import WriteOptions, WriteResult
from tests.support.merging import assert_same, load_folder, values, write_rank
from tests.support.tiny_llama import LLAMA, SHAPES, make_llama
from tests.support.versions import needs_transformers_5

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def merge(
    folder: Path, state: dict[str, Any], config: dict[str, Any] = LLAMA, **options: Any
) -> WriteResult:
    """What became of one rank file; the result is in ``folder / "out"``."""
    write_rank(folder / "in", state, config)
    options.setdefault("write", WriteOptions(fsync=False))
    return merge_fsdp([folder / "in"], folder / "out", MergeOptions(**options))


def config_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "config.json").read_text())


@pytest.mark.parametrize("said", ["FSDPLlamaForCausalLM", "PeftModelForCausalLM"])
def test_a_wrapper_is_no_architecture(tmp_path, said):
    result = merge(tmp_path, make_llama(), LLAMA | {"architectures": [said]})
    assert config_in(tmp_path)["architectures"] == ["LlamaForCausalLM"]
    assert result.load_check.architecture == "LlamaForCausalLM"


@needs_transformers_5
@pytest.mark.parametrize("change", [8, -3])
def test_a_resized_vocabulary_is_said_and_opens(tmp_path, change):
    rows = LLAMA["vocab_size"] + change
    state = make_llama(vocab_size=rows)
    result = merge(tmp_path, state)
    assert config_in(tmp_path)["vocab_size"] == rows
    assert "vocab_size was 16" in result.warnings[0]
    assert result.load_check.num_tensors == len(state)


@needs_transformers_5
def test_half_of_a_checkpoint_is_no_resized_vocabulary(tmp_path):
    half = {name: tensor[: len(tensor) // 2].clone() for name, tensor in make_llama().items()}
    with pytest.raises(MappingError) as refused:
        merge(tmp_path, half)
    assert len(refused.value.names) == len(half)
    assert not (tmp_path / "out").exists()


def test_the_tie_that_only_the_inner_config_says_is_said_at_both_levels(tmp_path):
    state = make_llama()
    del state["lm_head.weight"]
    text = LLAMA | {"tie_word_embeddings": True}
    merge(
        tmp_path,
        state,
        {"model_type": "unknown", "tie_word_embeddings": False, "text_config": text},
    )
    assert config_in(tmp_path)["tie_word_embeddings"] is True
    assert config_in(tmp_path)["text_config"]["tie_word_embeddings"] is True


def test_quantisation_that_training_undid_is_left_out_and_said(tmp_path):
    beside = tmp_path / "in" / "huggingface"
    beside.mkdir(parents=True)
    (beside / "hf_quant_config.json").write_text("{}")
    result = merge(tmp_path, make_llama(), LLAMA | {"quantization_config": {"quant_method": "fp8"}})
    assert "quantization_config" not in config_in(tmp_path)
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()
    gone = {"config.json: quantization_config", "hf_quant_config.json"}
    assert result.dropped.keys() == gone
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert manifest["dropped"].keys() == gone


@needs_transformers_5
def test_fp8_weights_keep_it_and_are_held_against_their_class(tmp_path):
    state = make_llama()
    for name in [name for name in state if "_proj" in name]:
        state[name] = state[name].to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = torch.ones(1, 1)
    config = LLAMA | {"quantization_config": {"quant_method": "fp8"}}
    result = merge(tmp_path, state, config)
    assert config_in(tmp_path)["quantization_config"] == {"quant_method": "fp8"}
    assert result.load_check.num_tensors == len(SHAPES)
    del state["model.norm.weight"]
    with pytest.raises(MappingError) as refused:
        merge(tmp_path / "other", state, config)
    assert list(refused.value.names) == ["missing: model.norm.weight [8]"]


def test_packed_weights_are_not_held_against_their_class_and_that_is_said(tmp_path):
    state = make_llama()
    name = "model.layers.0.mlp.up_proj"
    del state[f"{name}.weight"]
    state |= {f"{name}.qweight": torch.arange(12, dtype=torch.int32)}
    result = merge(tmp_path, state)
    assert result.load_check is None
    assert "packed" in result.warnings[0]
    with pytest.raises(UsageError, match="packed"):
        merge(tmp_path / "other", state, write=WriteOptions(check_load=True))


def test_objects_of_transformer_engine_are_said(tmp_path):
    state = {f"model.layers.{n}.x._extra_state": io.BytesIO(b"scales") for n in range(2)}
    state |= {"model.layers.0.y._extra_state": torch.zeros(8, dtype=torch.uint8)}
    result = merge(tmp_path, make_llama() | state)
    assert_same(load_folder(tmp_path / "out"), make_llama())
    assert any("_extra_state" in name for name in result.dropped)
    assert len(result.dropped) == 2


def test_nothing_of_an_adapter_or_a_run_is_copied(tmp_path):
    beside = tmp_path / "in" / "huggingface"
    beside.mkdir(parents=True)
    for name in ("adapter_config.json", "trainer_state.json", "generation_config.json"):
        (beside / name).write_text("{}")
    merge(tmp_path, make_llama())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {"config.json", "model.safetensors", "generation_config.json", "ckpt_manifest.json"}
    assert names == {*expected, "README.md"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text(POINTER), "git-lfs"),
        (lambda path: path.write_text(""), "has no bytes"),
        (lambda path: path.write_text('{"a"'), "not JSON"),
        (lambda path: path.symlink_to("../../blobs/abc"), "where nothing is"),
        (os.mkfifo, "a named pipe"),
    ],
    ids=["pointer", "empty", "cut", "dangling", "pipe"],
)
def test_side_files_that_are_not_whole_write_nothing(tmp_path, spoil, said):
    beside = tmp_path / "in" / "huggingface"
    beside.mkdir(parents=True)
    spoil(beside / "tokenizer.json")
    with pytest.raises(CheckpointError) as refused:
        merge(tmp_path, make_llama())
    (problem,) = refused.value.problems
    assert said in problem.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoil", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("gone")])
def test_a_config_that_is_no_file_is_not_said_to_be_missing(tmp_path, spoil):
    write_rank(tmp_path / "in", make_llama(), LLAMA)
    path = tmp_path / "in" / "huggingface" / "config.json"
    path.unlink()
    spoil(path)
    with pytest.raises(CheckpointError, match="expected a file") as refused:
        merge_fsdp(tmp_path / "in", tmp_path / "out")
    assert str(path) in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_a_pointer_say_so(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError) as refused:
        convert_to_mcore(tmp_path, tmp_path / "out")
    (problem,) = refused.value.problems
    assert "a pointer of git-lfs" in problem.message
    assert "git lfs pull" in problem.message


@pytest.fixture
def with_tokenizers(tmp_path: Path) -> Path:
    """A DCP checkpoint of accelerate with a tokenizer above it, and a base with another."""
    import torch.distributed.checkpoint as dcp

    dcp.save(make_llama(), checkpoint_id=tmp_path / "run" / "pytorch_model_fsdp_0")
    (tmp_path / "run" / "tokenizer.json").write_text('{"of": "run"}')
    for name in ("base", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"of": name}))
    (tmp_path / "base" / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def merge_run(folder: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer in the result, and the warnings."""
    asked = MergeOptions(
        config=folder / "base", write=WriteOptions(fsync=False, overwrite=True), **options
    )
    result = merge_dcp(folder / "run", folder / "out", asked)
    return json.loads((folder / "out" / "tokenizer.json").read_text()), result.warnings


def test_the_tokenizer_of_the_run_wins(with_tokenizers):
    found, (said,) = merge_run(with_tokenizers)
    assert found == {"of": "run"}
    assert said.startswith(f"the tokenizer is that of {with_tokenizers / 'run'}, ")


def test_the_tokenizer_that_is_named_wins_over_both(with_tokenizers):
    found, (said,) = merge_run(with_tokenizers, tokenizer=with_tokenizers / "third")
    assert found == {"of": "third"}
    assert str(with_tokenizers / "third") in said
    assert merge_run(with_tokenizers, tokenizer=with_tokenizers / "base") == ({"of": "base"}, [])
    with pytest.raises(UsageError, match="no tokenizer there") as refused:
        merge_run(with_tokenizers, tokenizer=with_tokenizers / "nowhere")
    assert "tokenizer.json" in refused.value.hint


@needs_transformers_5
def test_a_tokenizer_that_transformers_5_saved_is_the_same_for_it(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", extra_special_tokens=["<x>", "<y>"]
    )
    made.save_pretrained(tmp_path / "in" / "huggingface")
    saved = json.loads((tmp_path / "in" / "huggingface" / "tokenizer_config.json").read_text())
    assert isinstance(saved["extra_special_tokens"], list)
    merge(tmp_path, make_llama())
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in settings
    opened = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opened.get_vocab() == made.get_vocab()
    assert set(opened.all_special_tokens) == set(made.all_special_tokens)
    assert opened("a <x> b")["input_ids"] == made("a <x> b")["input_ids"]


def test_a_compiled_inner_model_is_the_model(tmp_path):
    import torch.distributed.checkpoint as dcp

    state = {
        f"model.{name.replace('model.', 'model._orig_mod.', 1)}": tensor
        for name, tensor in make_llama().items()
    }
    dcp.save(state, checkpoint_id=tmp_path / "in")
    (tmp_path / "in" / "config.json").write_text(json.dumps(LLAMA))
    merge_dcp(tmp_path / "in", tmp_path / "out")
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), make_llama())


def test_tensors_of_no_class_can_still_be_had(tmp_path):
    """What was left out on purpose does not keep the rest from being written as it is."""
    state = {"a.inv": values(4), "b.rotary_emb.inv_freq": values(2)}
    merge(tmp_path, state, keep_names=True)
    assert_same(load_folder(tmp_path / "out"), state)


@needs_transformers_5
@pytest.mark.parametrize("start", ["0.auto_model.", "model.0.model."])
def test_an_encoder_of_sentence_transformers_comes_with_its_modules(tmp_path, start):
    """As its trainer saves them: the whole list of modules, and what describes it beside it."""
    bare = {name.removeprefix("model."): tensor for name, tensor in make_llama().items()}
    del bare["lm_head.weight"]
    dcp.save({start + name: tensor for name, tensor in bare.items()}, checkpoint_id=tmp_path / "in")
    side = tmp_path / "in" / "huggingface"
    (side / "1_Pooling").mkdir(parents=True)
    (side / "config.json").write_text(json.dumps(LLAMA | {"architectures": ["LlamaModel"]}))
    (side / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (side / "1_Pooling" / "config.json").write_text("{}")
    result = merge_dcp(tmp_path / "in", tmp_path / "out", MergeOptions())
    assert result.load_check.architecture == "LlamaModel"
    assert_same(load_folder(tmp_path / "out"), bare)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()
