"""Checkpoints of models with LoRA adapters, written by FSDP: judged by peft and by logits."""

import json
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_dcp, merge_fsdp
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.verify import verify_checkpoint as verify
from ckpt_tool.plans.options import WriteOptions
from tests.real.fsdp_cases import LORA_CASES
from tests.real.fsdp_reference import logits_of
from tests.support.merging import TINY, assert_same, load_folder, values, write_rank

WHOLE = [name for name, case in LORA_CASES.items() if not case.adapter_alone]
CHECKED = WriteOptions(verify=True, check_load=True)
UNKNOWN = "lora_unknown_w1"


def merge(case: Path, out: Path, mode: str | None = None, **values):
    alpha = 10.0 if case.name == UNKNOWN else None
    lora = LoraOptions(mode, alpha, values.pop("base", None))
    options = MergeOptions(lora=lora, write=CHECKED, **values)
    return merge_fsdp([case], out, options)


def logits(folder: Path, model) -> tuple[torch.Tensor, torch.Tensor]:
    """What `model` computes, and what the adapted model did in memory."""
    expected = load_file(folder / "logits.safetensors")
    return logits_of(model.eval(), expected["input_ids"]), expected["logits"]


def opened(folder: Path, adapter: Path | None = None):
    config = json.loads((folder / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class.from_pretrained(folder, attn_implementation="eager")
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    return model


@pytest.mark.parametrize("case", WHOLE)
def test_fused_is_what_peft_merges(checkpoints, tmp_path, case):
    folder = checkpoints[case]
    result = merge(folder, tmp_path / "out")
    assert result.lora is not None
    assert result.lora.mode == "fuse"
    assert result.verified
    found, expected = load_folder(tmp_path / "out"), load_folder(folder / "reference")
    assert found.keys() == expected.keys()
    base = load_folder(folder / "base")
    changed = set()
    for name, tensor in expected.items():
        if torch.equal(tensor, base[name]):
            assert torch.equal(found[name], tensor), name
            continue
        changed.add(re.sub(r"experts\.\d+\.(gate|up)?", "experts.", name))  # two stacks in memory
        # peft rounds products and sums in the dtype of the weights, we in float32 and once.
        eps = torch.finfo(tensor.dtype).eps
        off = (found[name].double() - tensor.double()).abs()
        assert (off <= 4 * eps * tensor.double().abs() + eps * 0.1).all(), name
        assert not torch.equal(found[name], base[name]), name
    embeddings = 1 if result.lora.num_tokens else 0
    assert len(changed) == result.lora.num_modules + len(result.lora.trained_whole) + embeddings


@pytest.mark.parametrize("case", sorted(set(WHOLE) - {"lora_bf16_w3"}))
def test_fused_computes_what_the_adapted_model_did(checkpoints, tmp_path, case):
    merge(checkpoints[case], tmp_path / "out")
    found, expected = logits(checkpoints[case], opened(tmp_path / "out"))
    plain, _ = logits(checkpoints[case], opened(checkpoints[case] / "base"))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, expected, rtol=1e-2, atol=1e-3)  # adapters do something


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("mode", ["split", "both"])
def test_split_off_is_what_peft_saves(checkpoints, tmp_path, case, mode):
    folder, out = checkpoints[case], tmp_path / "out"
    result = merge(folder, out, mode)
    assert result.verified
    assert result.lora is not None
    assert result.lora.adapter == "lora_adapter"
    adapter = load_file(out / "lora_adapter" / "adapter_model.safetensors")
    expected = load_file(folder / "adapter" / "adapter_model.safetensors")
    if "patterns" in case:  # peft also saves the embedding below the one that it adapts
        expected = {name: t for name, t in expected.items() if "base_layer" not in name}
    assert_same(adapter, expected)
    if mode == "split":
        assert_same(load_folder(out), load_folder(folder / "base"))
    else:
        assert merge(folder, tmp_path / "fused").lora is not None
        assert_same(load_folder(out), load_folder(tmp_path / "fused"))


@pytest.mark.parametrize("case", WHOLE)
def test_peft_opens_what_was_split_off(checkpoints, tmp_path, case):
    out = tmp_path / "out"
    merge(checkpoints[case], out, "split")
    model = opened(out, out / "lora_adapter")
    found, expected = logits(checkpoints[case], model)
    assert torch.equal(found, expected)


def test_settings_of_an_adapter_are_those_of_the_run(checkpoints, tmp_path):
    out = tmp_path / "out"
    merge(checkpoints["lora_patterns_w2"], out, "split")
    found = json.loads((out / "lora_adapter" / "adapter_config.json").read_text())
    expected = json.loads(
        (checkpoints["lora_patterns_w2"] / "adapter" / "adapter_config.json").read_text()
    )
    differing = {k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)}
    assert differing <= {"target_modules", "modules_to_save", "base_model_name_or_path"}
    assert set(found["target_modules"]) == set(expected["target_modules"])


def test_settings_are_made_from_what_is_known(checkpoints, tmp_path):
    merge(checkpoints["lora_critic_w2"], tmp_path / "out", "split")
    found = json.loads((tmp_path / "out" / "lora_adapter" / "adapter_config.json").read_text())
    assert (found["r"], found["lora_alpha"], found["task_type"]) == (4, 10, "TOKEN_CLS")
    assert found["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert found["modules_to_save"] == ["score"]


@pytest.mark.parametrize(
    ("case", "model"), [("lora_alone_w2", "lora_w2"), ("lora_alone_vlm_w2", "lora_vlm_w2")]
)
def test_adapters_alone_become_a_folder_that_peft_opens(checkpoints, tmp_path, case, model):
    out = tmp_path / "out"
    lora = LoraOptions()
    result = merge_fsdp(
        [checkpoints[case]], out, MergeOptions(lora=lora, write=WriteOptions(verify=True))
    )
    assert result.verified
    assert result.lora is not None
    assert (result.lora.mode, result.lora.adapter) == ("split", ".")
    names = {"adapter_config.json", "adapter_model.safetensors", "ckpt_manifest.json"}
    assert {path.name for path in out.iterdir()} == {*names, "README.md"}
    expected = load_file(checkpoints[case] / "adapter" / "adapter_model.safetensors")
    assert_same(load_file(out / "adapter_model.safetensors"), expected)
    found, wanted = logits(checkpoints[case], opened(checkpoints[model] / "base", out))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("case", "whole"), [("lora_alone_w2", "lora_w2"), ("lora_alone_vlm_w2", "lora_vlm_w2")]
)
@pytest.mark.parametrize("mode", [None, "both"])
def test_adapters_alone_are_fused_into_a_base(checkpoints, tmp_path, case, whole, mode):
    merge(checkpoints[case], tmp_path / "out", mode, base=checkpoints[whole] / "base")
    merge(checkpoints[whole], tmp_path / "expected", mode)
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "expected"))
    assert (tmp_path / "out" / "lora_adapter").is_dir() == (mode == "both")
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert "model.safetensors" in {file["name"] for file in manifest["source"]["files"]}


def test_a_dcp_folder_has_adapters_too(checkpoints, tmp_path):
    folder = checkpoints["lora_w2"]
    source = shutil.copytree(folder / "dcp", tmp_path / "dcp")
    shutil.copytree(folder / "actor" / "huggingface", source / "huggingface")
    shutil.copy(folder / "actor" / "lora_train_meta.json", source)
    merge_dcp(source, tmp_path / "out")
    merge(folder, tmp_path / "expected")
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "expected"))


def test_verify_fuses_what_it_compares(checkpoints, tmp_path):
    folder = checkpoints["lora_patterns_w2"]
    merge(folder, tmp_path / "out")
    result = verify(folder, tmp_path / "out")
    assert result.equal
    assert any("fused" in warning for warning in result.left.warnings)
    base = verify(folder, folder / "base")
    assert len(base.mismatched) == 8  # each adapted weight, and the head


def test_without_config_names_stay_unless_fusing_is_asked_for(checkpoints, tmp_path):
    folder = checkpoints["lora_w2"]
    kept = merge_fsdp([folder], tmp_path / "kept", MergeOptions(keep_names=True))
    assert_same(load_folder(tmp_path / "kept"), load_file(folder / "raw_state_dict.safetensors"))
    assert any("`lora.mode='fuse'`" in warning for warning in kept.warnings)
    options = MergeOptions(keep_names=True, lora=LoraOptions("fuse"))
    merge_fsdp([folder], tmp_path / "fused", options)
    merge(folder, tmp_path / "expected")
    assert_same(load_folder(tmp_path / "fused"), load_folder(tmp_path / "expected"))


def test_a_dtype_that_is_asked_for_is_the_adapters_too(checkpoints, tmp_path):
    merge(checkpoints["lora_w2"], tmp_path / "out", "both", dtype="bfloat16")
    merge(checkpoints["lora_w2"], tmp_path / "whole", "both")
    fused, adapter = "model.safetensors", "lora_adapter/adapter_model.safetensors"
    for name in (fused, adapter):
        expected = load_file(tmp_path / "whole" / name)
        rounded = {key: tensor.bfloat16() for key, tensor in expected.items()}
        assert_same(load_file(tmp_path / "out" / name), rounded)


@pytest.mark.parametrize(
    ("case", "lora", "message"),
    [
        (UNKNOWN, LoraOptions(), "alpha is unknown"),
        ("lora_w2", LoraOptions(alpha=11.0), "alpha is 10 by .*, 11 by `lora.alpha`"),
        ("lora_w2", LoraOptions(base=Path("x")), "has the weights below its adapters itself"),
        ("fsdp2_w2", LoraOptions("fuse"), "no LoRA adapters"),
        ("fsdp2_w2", LoraOptions(alpha=3.0), "no LoRA adapters"),
        ("lora_alone_w2", LoraOptions("fuse"), "holds adapters alone"),
        ("lora_alone_w2", LoraOptions(base=Path("x")), "no Hugging Face model folder"),
    ],
)
def test_requests_that_cannot_be_carried_out(checkpoints, tmp_path, case, lora, message):
    with pytest.raises(UsageError, match=message):
        merge_fsdp([checkpoints[case]], tmp_path / "out", MergeOptions(lora=lora))
    assert not (tmp_path / "out").exists()


def test_resuming_tells_one_update_from_another(checkpoints):
    """What was written with one alpha must not pass for what another one makes."""

    def mark(alpha: float) -> str:
        options = MergeOptions(lora=LoraOptions(alpha=alpha))
        return make_plan(checkpoints[UNKNOWN], "fsdp", options).fingerprint

    assert mark(10.0) == mark(10.0)
    assert mark(10.0) != mark(20.0)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"model.norm.base_layer.weight": values(8)}, "in the LoRA adapters"),
        ({"model.norm.original_module.weight": values(8)}, "in the LoRA adapters"),
        ({"model.q.base_layer.weight": values(8), "model.q.ia3_l.default": values(8)},
         "adapters that are not supported"),
    ],
    ids=["lost", "lost whole", "another method"],
)  # fmt: skip
def test_what_is_left_of_adapters_is_refused_without_sending_in_a_circle(tmp_path, extra, said):
    source = write_rank(tmp_path / "in", {"model.embed_tokens.weight": values(16, 8)} | extra, TINY)
    with pytest.raises(MappingError, match=said) as refused:
        merge_fsdp([source], tmp_path / "out")
    assert "ckpt merge" not in refused.value.hint
    assert "first" not in refused.value.hint
