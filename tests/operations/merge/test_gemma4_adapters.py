"""LoRA of Megatron-Bridge on Gemma 4, whose attention has the name of its kind, or of none."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_tool import MergeOptions, WriteOptions, merge_megatron
from ckpt_tool.mapping.lora.options import LoraOptions
from tests.operations.to_mcore.test_inputs import Tensors, assert_same, convert, loaded
from tests.support.backed import distinct
from tests.support.gemma4_models import write_gemma4
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = [needs_transformers_5, pytest.mark.filterwarnings("ignore:torch.distributed is")]
UNSYNCED = WriteOptions(fsync=False, check_load=False)
ALPHA, RANK = 4.0, 2


def make_adapters(whole: Tensors) -> Tensors:
    """A and B of every linear layer of attention, with the leading axes that its weight has."""
    found = {}
    for number, (name, weight) in enumerate(whole.items()):
        module = name.removesuffix(".weight")
        if module.endswith((".linear_qkv", ".linear_proj")):
            *lead, rows, columns = weight.shape
            for part, shape in (("in", (RANK, columns)), ("out", (rows, RANK))):
                factor = distinct((*lead, *shape)) / 64 + number
                found[f"{module}.adapter.linear_{part}.weight"] = factor / 512
    return found


def merge(folder: Path, out: Path, *, model: Path, base: bool) -> Tensors:
    lora = LoraOptions("fuse", ALPHA, model if base else None)
    options = MergeOptions(config=None if base else model, lora=lora, write=UNSYNCED)
    merge_megatron(folder, out, options)
    return load_folder(out)


@pytest.mark.parametrize(
    ("name", "layers"), [("31b", "stacked"), ("e4b", "per-layer"), ("26b", "stacked")]
)
def test_adapters_alone_are_fused_as_those_beside_their_weights(name, layers, tmp_path) -> None:
    model = write_gemma4(name, tmp_path / "hf")
    convert(model, tmp_path / "mcore", layers=layers)
    whole = loaded(tmp_path / "mcore")
    adapters = make_adapters(whole)
    forms = {"both": whole | adapters, "alone": adapters}
    if layers == "per-layer":  # as files of single ranks have it
        kinds = re.compile("_(sliding|global)[.]")
        forms["plain"] = {kinds.sub(".", key): tensor for key, tensor in adapters.items()}
    found = {}
    for form, tensors in forms.items():
        dcp.save(tensors, checkpoint_id=tmp_path / form, no_dist=True)
        out = tmp_path / f"{form}_merged"
        found[form] = merge(tmp_path / form, out, model=model, base=form != "both")
    for each in found.values():
        assert_same(each, found["both"])
    stem = "decoder.layers.2." if layers == "per-layer" else "decoder.layers."
    factors = [
        adapters[f"{stem}self_attention_global.linear_proj.adapter.linear_{part}.weight"]
        for part in ("out", "in")
    ]
    left, right = (each if layers == "per-layer" else each[0] for each in factors)
    output = "model.layers.2.self_attn.o_proj.weight"
    expected = load_folder(model)[output] + ALPHA / RANK * left @ right
    torch.testing.assert_close(found["both"][output], expected)
