"""GPT-OSS to Megatron: experts as they are published, in MXFP4, and wide."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool import MergeOptions, merge_megatron, verify_checkpoint
from ckpt_tool.common.errors import MappingError
from tests.operations.to_mcore.test_inputs import NO_SYNC, assert_same, convert, loaded
from tests.support.merging import load_folder
from tests.support.tiny_models import build
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5

#: As wide as they are: no shape says which way round an expert's last matrix is.
SIZE = 32
LAYER = "decoder.layers."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model, its experts in MXFP4 of random numbers, and as transformers unpacks them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tmp_path_factory.mktemp("gpt_oss")
    model = build("gpt_oss", hidden_size=SIZE, intermediate_size=SIZE)
    model.bfloat16().save_pretrained(folder / "plain")
    config = json.loads((folder / "plain" / "config.json").read_text())
    packed, wide = {}, {}
    source = torch.Generator().manual_seed(1)
    for name, tensor in load_folder(folder / "plain").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = wide[name] = tensor
            continue
        count, columns, rows = tensor.shape
        shape = (count, rows, columns // 32, 16)
        blocks = torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)
        scales = torch.randint(110, 130, shape[:-1], generator=source, dtype=torch.uint8)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        wide[name] = convert_moe_packed_tensors(blocks, scales).contiguous()
    method = {"quantization_config": {"quant_method": "mxfp4"}}
    for name, tensors, more in (("packed", packed, method), ("wide", wide, {})):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config | more))
    return folder / "packed", folder / "wide"


def test_experts_of_four_bits_become_megatrons(models, tmp_path) -> None:
    packed, wide = models
    assert convert(packed, tmp_path / "packed").verified
    found, hub = loaded(tmp_path / "packed"), load_folder(wide)
    convert(wide, tmp_path / "wide")
    assert_same(found, loaded(tmp_path / "wide"))
    for layer, first in enumerate(found[f"{LAYER}mlp.experts.experts.linear_fc1.weight"]):
        gate_up = hub[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
        gate, up = gate_up[..., ::2].mT, gate_up[..., 1::2].mT
        assert torch.equal(first, torch.cat([gate, up], 1))
    for layer, second in enumerate(found[f"{LAYER}mlp.experts.experts.linear_fc2.weight"]):
        assert torch.equal(second, hub[f"model.layers.{layer}.mlp.experts.down_proj"].mT)


def test_they_come_back_wide(models, tmp_path) -> None:
    packed, wide = models
    convert(packed, tmp_path / "mcore")
    options = MergeOptions(config=wide, write=NO_SYNC)
    merge_megatron(tmp_path / "mcore", tmp_path / "back", options)
    assert_same(load_folder(tmp_path / "back"), load_folder(wide))
    assert verify_checkpoint(tmp_path / "mcore", packed).equal


def test_attention_without_biases_is_refused(models, tmp_path) -> None:
    """Experts always have some, and Megatron has them in both or in none."""
    _, wide = models
    config = json.loads((wide / "config.json").read_text()) | {"attention_bias": False}
    save_file(load_folder(wide), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MappingError, match="add_bias_linear"):
        convert(tmp_path, tmp_path / "out")
