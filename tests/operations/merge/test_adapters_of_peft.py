"""What peft's save_pretrained left, as it is on disk: fused into a base, refused elsewhere."""

import re

import peft
import pytest
import torch

from ckpt_tool.common.errors import UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_checkpoint
from ckpt_tool.operations.options import MergeOptions, VerifyOptions
from ckpt_tool.operations.to_mcore import convert_to_mcore
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import load_folder
from tests.support.peft_models import KINDS, merge_by_peft, write_checkpoint
from tests.support.tiny_models import build

pytestmark = pytest.mark.filterwarnings("ignore")


def saved(tmp_path, init="gaussian"):
    """The adapted model; what peft saves of it is in `adapter`, its model as it was in `base`."""
    base = build("qwen2")
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights=init
    )
    model = peft.get_peft_model(base, config).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=random) / 10)
    model.save_pretrained(tmp_path / "adapter")
    return model


def merge(tmp_path, mode=None, source="adapter", base="base"):
    lora = LoraOptions(mode, base=tmp_path / base if base else None)
    options = MergeOptions(lora=lora, write=WriteOptions(fsync=False))
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["experts with other names on the Hub", "tokens", "biases"])
def test_so_are_other_kinds(kind, tmp_path):
    model = KINDS[kind].adapted()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    build(KINDS[kind].family, **KINDS[kind].settings).save_pretrained(tmp_path / "base")
    merge(tmp_path)
    merge_by_peft(model).save_pretrained(tmp_path / "merged")
    assert_close(load_folder(tmp_path / "out"), load_folder(tmp_path / "merged"))


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
    assert "--base BASE" in refused.value.hint


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
