"""Adapters of ms-swift, which saves them alone in torch_dist, with its arguments above."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_megatron
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import assert_same, load_folder
from tests.support.rank_rows import Shards
from tests.support.resaving import resaved

#: Base and adapters of two layers, of rank 8; alpha is 16. The same adapters by ms-swift's names.
WRITTEN = Path(__file__).parents[2] / "fixtures" / "bridge0.3_lora_tp2"
SAID = {"lora_rank": 8, "lora_alpha": 16, "use_rslora": False, "tuner_type": "lora"}


def only_adapters(found):
    names = {"adapter.linear_in": "lora_A.default", "adapter.linear_out": "lora_B.default"}
    return {
        name.replace(old, new): tensor
        for name, tensor in found.items()
        for old, new in names.items()
        if old in name
    }


@pytest.fixture
def base(tmp_path) -> Path:
    source = resaved(
        WRITTEN, tmp_path / "plain", lambda t: {n: x for n, x in t.items() if "adapter" not in n}
    )
    merge_megatron(source, tmp_path / "base", MergeOptions(config=WRITTEN / "huggingface"))
    return tmp_path / "base"


def merge(source: Path, out: Path, base: Path):
    write = WriteOptions(fsync=False, verify=True)
    return merge_megatron(
        source, out, MergeOptions(lora=LoraOptions(None, None, base), write=write)
    )


@pytest.mark.parametrize("where", ["iter_0000001", "."])
def test_they_are_those_of_megatron_bridge(base, where, tmp_path):
    run = tmp_path / "checkpoint-1"
    source = run / "iter_0000001"
    run.mkdir()
    resaved(WRITTEN, source, only_adapters)
    (run / where / "args.json").write_text(json.dumps(SAID))
    result = merge(source, tmp_path / "out", base)
    assert (result.lora.num_modules, result.lora.rank, result.lora.alpha) == (8, 8, 16.0)
    assert result.lora.source == "args.json"
    options = MergeOptions(config=WRITTEN / "huggingface", lora=LoraOptions(None, 16.0))
    merge_megatron(WRITTEN, tmp_path / "expected", options)
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "expected"))


def test_gate_and_up_of_two_ranks(base, tmp_path):
    """Of layers by themselves, whose B has the gate's and up's rows of one rank after the other."""

    def change(found):
        apart = {}
        for name, tensor in only_adapters(found).items():
            for layer, part in enumerate(tensor):
                gate, up = (half.chunk(2) for half in part.chunk(2))
                rows = [torch.cat([gate[rank], up[rank]]) for rank in range(2)]
                cut = "linear_fc1.lora_B" in name
                own = name.replace("layers.", f"layers.{layer}.", 1)
                apart[own] = Shards.of(rows) if cut else part.clone()
        return apart

    source = resaved(WRITTEN, tmp_path / "in", change)
    (source / "args.json").write_text(json.dumps(SAID))
    merge(source, tmp_path / "out", base)
    options = MergeOptions(config=WRITTEN / "huggingface", lora=LoraOptions(None, 16.0))
    merge_megatron(WRITTEN, tmp_path / "expected", options)
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "expected"))


@pytest.mark.parametrize("alone", [True, False])
def test_what_was_trained_whole_beside_them_is_named(base, tmp_path, alone):
    whole = [f"output_layer.{end}.weight" for end in ("modules_to_save.default", "original_module")]

    def change(found):
        kept = {n: t for n, t in found.items() if "adapter" not in n and not alone}
        head = found["embedding.word_embeddings.weight"]
        return kept | only_adapters(found) | {name: head.clone() for name in whole}

    source = resaved(WRITTEN, tmp_path / "in", change)
    (source / "args.json").write_text(json.dumps(SAID))
    lora = LoraOptions(None, None, base) if alone else LoraOptions(None, 16.0)
    options = MergeOptions(config=None if alone else WRITTEN / "huggingface", lora=lora)
    with pytest.raises(MappingError, match=r"whole beside adapters \(modules_to_save\)") as error:
        merge_megatron(source, tmp_path / "out", options)
    assert sorted(error.value.names) == whole
    assert "Let ms-swift merge them" in error.value.hint


def test_arguments_that_say_nothing_of_adapters_are_not_taken(base, tmp_path):
    source = resaved(WRITTEN, tmp_path / "in", only_adapters)
    (source / "args.json").write_text(json.dumps({"lora_alpha": 16}))
    with pytest.raises(UsageError, match="alpha is unknown"):
        merge(source, tmp_path / "out", base)
