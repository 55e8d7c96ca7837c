"""Adapters of every kind that peft makes: fused, split off, and fused into a base."""

import dataclasses
import json
import re
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import assert_same, load_folder
from tests.support.peft_models import KINDS, base_of, merge_by_peft, write_checkpoint
from tests.support.tiny_models import build

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WRITE = WriteOptions(fsync=False)
IDS = torch.arange(1, 12).reshape(1, -1)


def merge(source: Path, out: Path, mode: str | None = None, base: Path | None = None):
    options = MergeOptions(lora=LoraOptions(mode, base=base), write=WRITE)
    return merge_fsdp([source], out, options)


def assert_close(found: Path, expected: Path) -> None:
    """The same names, shapes and, up to how often sums are rounded, values."""
    tensors, wanted = load_folder(found), load_folder(expected)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensors[name].shape == tensor.shape, name
        assert torch.allclose(tensors[name], tensor, rtol=1e-5, atol=1e-5), name


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(params=list(KINDS))
def adapted(request, tmp_path):
    """The adapted model, its checkpoint, and the folders of its base and of what peft merges."""
    model = KINDS[request.param].adapted()
    source = write_checkpoint(tmp_path / "in", model)
    base_of(model).save_pretrained(tmp_path / "base")
    merge_by_peft(model).save_pretrained(tmp_path / "merged")
    return model, source


def test_fused_is_what_peft_merges_and_computes_what_the_model_did(adapted, tmp_path):
    model, source = adapted
    result = merge(source, tmp_path / "out")
    assert result.lora is not None
    assert result.lora.mode == "fuse"
    assert_close(tmp_path / "out", tmp_path / "merged")
    opened = type(model.get_base_model()).from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(logits(opened), logits(model), rtol=1e-3, atol=1e-4)
    before = type(model.get_base_model()).from_pretrained(tmp_path / "base").eval()
    if "patch_embed" not in str(model.peft_config["default"].target_modules):
        assert not torch.allclose(logits(before), logits(model), rtol=1e-3, atol=1e-4)
    assert verify_checkpoint(source, tmp_path / "out").equal


def test_split_off_is_what_peft_saves_and_opens(adapted, tmp_path):
    model, source = adapted
    merge(source, tmp_path / "out", "split")
    assert_close(tmp_path / "out", tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    found = load_file(tmp_path / "out" / "lora_adapter" / "adapter_model.safetensors")
    wanted = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    biases = {name for name in wanted if name.endswith(".bias") and "lora_B" not in name}
    assert_same(found, {name: t for name, t in wanted.items() if name not in biases})
    base = type(model.get_base_model()).from_pretrained(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of adapter weights that were not found
        warnings.filterwarnings("ignore", message=".*(fan_in_fan_out|tied|deprecated|_pattern).*")
        again = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "lora_adapter").eval()
    assert torch.allclose(logits(again), logits(model), rtol=1e-4, atol=1e-5)


def is_of_adapter(name: str) -> bool:
    return "lora_" in name or "trainable_tokens" in name


def test_adapters_alone_are_fused_into_a_base_as_it_is_on_the_hub(adapted, tmp_path):
    model, source = adapted
    alone = write_checkpoint(tmp_path / "alone", model, is_of_adapter)
    merge(alone, tmp_path / "out", base=tmp_path / "base")
    merge(source, tmp_path / "expected")
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "expected"))


@pytest.fixture(params=list(KINDS))
def saved(request, tmp_path):
    """The adapted model, what peft saves of it as a checkpoint, and the folder of its base."""
    kind = KINDS[request.param]
    model = kind.adapted()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    source = write_checkpoint(tmp_path / "in", model)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    torch.save(state, source / "model_world_size_1_rank_0.pt")
    build(kind.family, **kind.settings).save_pretrained(tmp_path / "base")
    return model, source, tmp_path / "base"


def test_what_peft_saved_is_fused_into_the_model_it_was_trained_on(saved, tmp_path):
    model, source, base = saved
    merge(source, tmp_path / "out", base=base)
    merge_by_peft(model).save_pretrained(tmp_path / "merged")
    assert_close(tmp_path / "out", tmp_path / "merged")


def test_what_peft_saved_becomes_a_folder_that_it_opens(saved, tmp_path):
    model, source, base = saved
    merge(source, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert_same(found, load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    opened = type(model.get_base_model()).from_pretrained(base)
    again = peft.PeftModel.from_pretrained(opened, tmp_path / "out").eval()
    assert torch.allclose(logits(again), logits(model), rtol=1e-4, atol=1e-5)


def old_stack(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What peft before 0.19 adds to a stack [E, d1, d2]: of d1 and d2, "in" is the first."""
    a = a.reshape(weight.shape[0], -1, a.shape[1])
    b = b.reshape(b.shape[0], -1, weight.shape[0])
    return weight + 1.5 * torch.einsum("o r e, e r i -> e i o", b, a)


@pytest.mark.parametrize("square", [False, True])
def test_experts_of_an_adapter_of_peft_before_0_19(square, tmp_path):
    kind = KINDS["experts"]
    settings = {"moe_intermediate_size": 16} if square else {}  # gate_up [3, 32, 32]
    kind = dataclasses.replace(kind, settings=settings)
    model = kind.adapted()
    state, expected = dict(model.state_dict()), build(kind.family, **settings).state_dict()
    for name in [name for name in state if ".experts." in name and ".lora_" in name]:
        del state[name]
    random = torch.Generator().manual_seed(2)
    for layer in (0, 1):
        stem = f"model.layers.{layer}.mlp.experts"
        for wrapper, own in (("", "down_proj"), (".base_layer", "gate_up_proj")):
            weight = expected[f"{stem}.{own}"]
            a = torch.randn(6, weight.shape[1], generator=random) / 10
            b = torch.randn(weight.shape[2], 6, generator=random) / 10
            state[f"base_model.model.{stem}{wrapper}.lora_A.default.weight"] = a
            state[f"base_model.model.{stem}{wrapper}.lora_B.default.weight"] = b
            expected[f"{stem}.{own}"] = old_stack(weight, a, b)
    source = write_checkpoint(tmp_path / "in", model, settings={"peft_version": "0.18.1"})
    torch.save(state, source / "model_world_size_1_rank_0.pt")
    merge(source, tmp_path / "out")
    opened = type(model.get_base_model()).from_pretrained(tmp_path / "out").state_dict()
    for name in expected:
        if ".experts." in name:
            assert torch.allclose(opened[name], expected[name], rtol=1e-5, atol=1e-6), name
    merge(source, tmp_path / "split", "split")
    found = json.loads((tmp_path / "split" / "lora_adapter" / "adapter_config.json").read_text())
    assert found["peft_version"] == "0.18.1"


def test_wider_rows_are_rounded_to_the_dtype_of_the_embedding(tmp_path):
    model = KINDS["tokens"].adapted()
    model.get_base_model().bfloat16()
    rows = "model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    state = model.state_dict()
    state[f"base_model.model.{rows}"] = trained = torch.randn(3, 32)
    source = write_checkpoint(tmp_path / "in", model)
    torch.save(state, source / "model_world_size_1_rank_0.pt")
    result = merge(source, tmp_path / "out")
    assert result.lora is not None
    assert result.lora.num_tokens == 3
    found = load_folder(tmp_path / "out")["model.embed_tokens.weight"]
    before = state["base_model.model.model.embed_tokens.token_adapter.base_layer.weight"]
    assert torch.equal(found[[7, 3, 40]], trained.bfloat16())
    rest = [row for row in range(48) if row not in (7, 3, 40)]
    assert torch.equal(found[rest], before[rest])


def test_embeddings_that_were_resized_are_saved_beside_adapters(tmp_path):
    """Tokens were added: peft saves the whole embedding and the head with the adapter."""
    kind = KINDS["biases"]
    model = kind.adapted()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    source = write_checkpoint(tmp_path / "in", model)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    bigger = {f"{name}.weight": torch.randn(50, 32) for name in ("model.embed_tokens", "lm_head")}
    state |= {f"base_model.model.{name}": tensor for name, tensor in bigger.items()}
    torch.save(state, source / "model_world_size_1_rank_0.pt")
    build(kind.family).save_pretrained(tmp_path / "base")
    result = merge(source, tmp_path / "out", base=tmp_path / "base")
    assert result.lora is not None
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(result.lora.trained_whole)
    found = load_folder(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in bigger.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 50


@pytest.mark.parametrize(
    ("kind", "settings", "state", "said"),
    [
        ("tokens", {"trainable_token_indices": None}, {}, "3 rows of it trained, and no"),
        ("tokens", {"trainable_token_indices": [1, 2]}, {}, r"rows of shape \[3, 32\], expected"),
        ("tokens", {"trainable_token_indices": [1, 2, 48]}, {}, r"no rows \[48\]"),
        ("biases of B", {}, {"model.layers.0.self_attn.q_proj.base_layer.bias": None},
         r"the model has no model\.layers\.0\.self_attn\.q_proj\.bias"),
        ("experts", {"r": 3}, {}, "rank 2 by its shapes, 3 by its settings"),
    ],
)  # fmt: skip
def test_what_cannot_be_fused_is_named_and_nothing_written(kind, settings, state, said, tmp_path):
    def stays(name: str) -> bool:
        return name.removeprefix("base_model.model.") not in state

    source = write_checkpoint(tmp_path / "in", KINDS[kind].adapted(), stays, settings)
    with pytest.raises(MappingError) as error:
        merge(source, tmp_path / "out")
    assert any(re.search(said, name) for name in error.value.names), error.value.names
    assert not (tmp_path / "out").exists()
