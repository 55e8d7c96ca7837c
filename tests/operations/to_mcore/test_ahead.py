"""Several layers for multi-token prediction, of which the Hub has what joins their inputs once."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool import (
    MappingError,
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import resaved
from tests.support.tiny_models import build
from tests.support.versions import needs_transformers_5

UNSYNCED = WriteOptions(fsync=False)
SHARED = {"pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "fc": "eh_proj"}
SHARED |= {"norm": "final_layernorm"}
KEYS = {"qwen3_next": "num_nextn_predict_layers", "qwen3_5_moe_text": "mtp_num_hidden_layers"}
every_family = pytest.mark.parametrize("family", KEYS)
pytestmark = needs_transformers_5


@pytest.fixture
def model(family: str, tmp_path: Path) -> Path:
    """With two such layers, whose tensors are those of the layer with full attention."""
    folder = tmp_path / "hf"
    build(family).save_pretrained(folder)
    tensors = load_folder(folder)
    stem = "model.layers.1."
    layer = {n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem)}
    for number in range(2):
        tensors |= {f"mtp.layers.{number}.{n}": t + number + 1 for n, t in layer.items()}
    names = [name for name in SHARED if name != "fc"]
    tensors |= {f"mtp.{name}.weight": torch.rand(32) for name in names}
    tensors["mtp.fc.weight"] = torch.rand(32, 64)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {KEYS[family]: 2}))
    return folder


@every_family
def test_each_layer_has_its_own_in_megatron_and_all_have_one_on_the_hub(model, family, tmp_path):
    checked = WriteOptions(fsync=False, verify=True)
    convert_to_mcore(model, tmp_path / "there", ToMcoreOptions(write=checked))
    found, hub = open_checkpoint(tmp_path / "there"), load_folder(model)
    for theirs, ours in SHARED.items():
        for number in range(2):
            tensor = found[f"mtp.layers.{number}.{ours}.weight"].read()
            assert torch.equal(tensor, hub[f"mtp.{theirs}.weight"])
    options = MergeOptions(config=model, write=checked)
    result = merge_megatron(tmp_path / "there", tmp_path / "back", options)
    assert result.verified
    assert_same(load_folder(tmp_path / "back"), hub)
    copies = {f"mtp.layers.1.{ours}.weight" for ours in SHARED.values()}
    assert copies <= result.dropped.keys()
    assert verify_checkpoint(tmp_path / "there", model).equal


@every_family
@pytest.mark.parametrize("change", [lambda t: t + 1, lambda t: t.double()], ids=["value", "dtype"])
def test_layers_that_were_trained_apart_are_refused(model, family, change, tmp_path):
    convert_to_mcore(model, tmp_path / "there", ToMcoreOptions(write=UNSYNCED))
    name = "mtp.layers.1.hnorm.weight"
    source = resaved(tmp_path / "there", tmp_path / "in", lambda t: t | {name: change(t[name])})
    with pytest.raises(MappingError, match="1 tensor of layers for multi-token") as caught:
        merge_megatron(source, tmp_path / "out", MergeOptions(config=model, write=UNSYNCED))
    assert caught.value.names == (f"{name}: differs from mtp.pre_fc_norm_hidden.weight",)
    assert not (tmp_path / "out").exists()


@pytest.mark.real
@pytest.mark.parametrize("family", ["qwen3_next"])
def test_modules_of_megatron_core_load_both(model, family, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=checked))
    layers = {
        m[1] for n in open_checkpoint(tmp_path / "out") if (m := re.match(r"mtp\.layers\.(\d)", n))
    }
    assert (result.load_check.architecture, layers) == ("GPTModel", {"0", "1"})
