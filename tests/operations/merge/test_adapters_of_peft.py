"""What peft's save_pretrained left, as it is on disk: fused into a base, refused elsewhere."""

import re
from dataclasses import fields

import peft
import pytest
import torch
import transformers

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_checkpoint
from ckpt_tool.operations.options import MergeOptions, VerifyOptions
from ckpt_tool.operations.to_mcore import convert_to_mcore
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import load_folder
from tests.support.peft_models import KINDS, merge_by_peft, write_checkpoint
from tests.support.tiny_models import build, filled

pytestmark = pytest.mark.filterwarnings("ignore")


def saved(tmp_path, init="gaussian", tied=False, base=None, **lora):
    """The adapted model; what peft saves of it is in `adapter`, its model as it was in `base`."""
    base = base or build("qwen2", tie_word_embeddings=tied)
    base.save_pretrained(tmp_path / "base")
    asked = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": init, **lora}
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, **asked)).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.add_(torch.randn(weight.shape, generator=random) / 10)
    model.save_pretrained(tmp_path / "adapter")
    return model


def merge(tmp_path, mode=None, source="adapter", base="base", **options):
    lora = LoraOptions(mode, base=tmp_path / base if base else None)
    options = MergeOptions(lora=lora, write=WriteOptions(fsync=False), **options)
    return merge_checkpoint(tmp_path / source, tmp_path / "out", options)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-5), name


def test_it_is_fused_into_the_model_it_was_trained_on(tmp_path):
    model = saved(tmp_path)
    merge(tmp_path)
    merge_by_peft(model).save_pretrained(tmp_path / "merged")
    assert_close(load_folder(tmp_path / "out"), load_folder(tmp_path / "merged"))
    compared = VerifyOptions(lora=LoraOptions(base=tmp_path / "base"))
    assert verify_checkpoint(tmp_path / "adapter", tmp_path / "out", compared).equal


def assert_merged(tmp_path, model):
    merge_by_peft(model).save_pretrained(tmp_path / "merged")
    assert_close(load_folder(tmp_path / "out"), load_folder(tmp_path / "merged"))


def test_an_adapted_embedding_that_was_saved_beside_its_adapter_keeps_the_update(tmp_path):
    model = saved(tmp_path, init=True, target_modules=["q_proj", "embed_tokens"])
    assert any("base_layer" in name for name in load_folder(tmp_path / "adapter"))
    merge(tmp_path)
    assert_merged(tmp_path, model)


@pytest.mark.parametrize(
    "lora",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": True},
    ],
)
def test_what_is_trained_of_a_tied_pair_is_not_the_other_s(lora, tmp_path):
    model = saved(tmp_path, tied=True, **lora)
    with pytest.raises(MappingError, match="but they differ") as refused:
        merge(tmp_path)
    assert "tie_word_embeddings=False" in refused.value.hint
    merge(tmp_path, tie_word_embeddings=False)
    opened = type(model.get_base_model()).from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(1, 12).reshape(1, -1)
    with torch.no_grad():
        assert torch.allclose(opened(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_a_tied_pair_that_was_trained_as_one_stays_one(tmp_path):
    if "ensure_weight_tying" not in {field.name for field in fields(peft.LoraConfig)}:
        pytest.skip(f"peft {peft.__version__} cannot")
    saved(tmp_path, tied=True, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    merge(tmp_path)
    assert "lm_head.weight" not in load_folder(tmp_path / "out")


def test_the_head_of_a_classifier_is_beside_its_adapter(tmp_path):
    config = build("qwen2").config
    config.num_labels = 3
    base = filled(transformers.Qwen2ForSequenceClassification, config)
    model = saved(tmp_path, base=base, task_type="SEQ_CLS")
    merge(tmp_path)
    assert_merged(tmp_path, model)


def test_older_files_of_peft_are_read_too(tmp_path):
    model = saved(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    model.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    merge(tmp_path)
    assert_merged(tmp_path, model)


def test_weights_that_nobody_trained_are_not_of_an_adapter(tmp_path):
    model = saved(tmp_path)
    write_checkpoint(tmp_path / "in", model, lambda name: "base_layer" not in name)
    with pytest.raises(MappingError, match="that they do not account for") as refused:
        merge(tmp_path, source="in")
    assert "model.norm.weight" in refused.value.names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["experts with other names on the Hub", "tokens", "biases"])
def test_so_are_other_kinds(kind, tmp_path):
    model = KINDS[kind].adapted()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    build(KINDS[kind].family, **KINDS[kind].settings).save_pretrained(tmp_path / "base")
    merge(tmp_path)
    assert_merged(tmp_path, model)


@pytest.mark.parametrize(("mode", "base"), [(None, None), ("split", None), ("split", "base")])
def test_it_is_not_made_into_what_it_is(mode, base, tmp_path):
    saved(tmp_path)
    with pytest.raises(UsageError, match="adapters alone, in a form that peft opens"):
        merge(tmp_path, mode, base=base)
    assert not (tmp_path / "out").exists()


def test_megatron_is_told_to_fuse_it_first(tmp_path):
    saved(tmp_path)
    with pytest.raises(UsageError, match="LoRA adapters alone") as refused:
        convert_to_mcore(tmp_path / "adapter", tmp_path / "out")
    assert "ckpt merge" in refused.value.hint


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_took_its_part_out_of_the_model_is_not_added_to_the_model(init, tmp_path):
    model = saved(tmp_path, init)
    with pytest.raises(UsageError, match=f"init_lora_weights: {init}"):
        merge(tmp_path)
    source = write_checkpoint(tmp_path / "in", model)  # with the weights below it
    merge(tmp_path, source=source.name, base=None)
    merge_by_peft(model).save_pretrained(tmp_path / "merged")
    assert_close(load_folder(tmp_path / "out"), load_folder(tmp_path / "merged"))


def test_what_took_its_part_out_is_still_said_to_have_where_it_is_written_alone(tmp_path):
    model = saved(tmp_path, "pissa")
    write_checkpoint(tmp_path / "in", model, lambda name: "lora_" in name)
    merge(tmp_path, source="in", base=None)
    base = type(model.get_base_model()).from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    merge_by_peft(again).save_pretrained(tmp_path / "again")
    merge_by_peft(model).save_pretrained(tmp_path / "merged")
    wanted = load_folder(tmp_path / "merged")
    assert_close(load_folder(tmp_path / "again"), wanted)
    assert re.search(
        '"init_lora_weights": "pissa"', (tmp_path / "out/adapter_config.json").read_text()
    )
