"""`merge megatron` against what real megatron-core saves, and against `to-mcore`."""

import json
from collections import Counter

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from ckpt_tool.common.errors import MappingError
from tests.real.fsdp_reference import logits_of
from tests.real.megatron_models import NAMES
from tests.real.megatron_routed import UNNAMED
from tests.support import megatron
from tests.support.megatron import FUSED, HYBRID, HYBRID_FILES, LOADED, NATIVE, SAVED
from tests.support.merging import assert_same, load_folder

#: Models of classes that transformers has not.
FOREIGN = ("nemotron-nas",)
UNSYNCED = WriteOptions(fsync=False)


def merged(source, out, config, **options):
    """The tensors of a checkpoint, merged."""
    result = merge_megatron(source, out, MergeOptions(config=config, write=UNSYNCED, **options))
    found = load_folder(out)
    assert result.num_tensors == len(found)
    return found


@pytest.mark.parametrize(("name", "size"), LOADED)
def test_what_real_ranks_saved_is_the_model_it_came_from(megatron_cases, tmp_path, name, size):
    source, model = megatron.saved(megatron_cases, name, size), megatron.hf(megatron_cases, name)
    assert_same(merged(source, tmp_path / "out", model), load_folder(model))
    assert verify_checkpoint(source, model).exact
    assert verify_checkpoint(source, tmp_path / "out").equal


@pytest.mark.parametrize(("name", "size"), NATIVE)
def test_weights_that_never_were_ours_come_out_the_same(megatron_cases, tmp_path, name, size):
    source, model = megatron.native(megatron_cases, name, size), megatron.hf(megatron_cases, name)
    assert_same(merged(source, tmp_path / "out", model), load_folder(model))


@pytest.mark.parametrize(("name", "size"), HYBRID)
def test_a_hybrid_model_is_the_model_it_came_from(megatron_cases, tmp_path, name, size):
    """Attention and MLP are layers of their own there, so that there are twice as many."""
    model = megatron.hf(megatron_cases, name)
    for source in (
        megatron.native(megatron_cases, f"{name}/hybrid", "tp1"),
        megatron.saved(megatron_cases, f"{name}/hybrid", size),
    ):
        assert "decoder.final_norm.weight" in open_checkpoint(source)
        assert verify_checkpoint(source, model).exact
        out = tmp_path / source.name
        assert_same(merged(source, out, model), load_folder(model))


@pytest.mark.parametrize(("name", "size"), HYBRID_FILES)
def test_a_hybrid_model_of_ranks_files(megatron_cases, tmp_path, name, size):
    model = megatron.hf(megatron_cases, name)
    source = megatron.ranks(megatron_cases, f"{name}/hybrid", size)
    assert_same(merged(source, tmp_path / "out", model), load_folder(model))
    options = MergeOptions(config=model, check_replicas=True, write=UNSYNCED)
    merge_megatron(source, tmp_path / "checked", options)


@pytest.mark.parametrize(("name", "size"), FUSED)
def test_one_down_projection_in_place_of_two(megatron_cases, tmp_path, name, size):
    """Both are apart in `torch_dist`, but not in the files of single ranks."""
    model = megatron.hf(megatron_cases, name)
    sources = [
        megatron.saved(megatron_cases, f"{name}/fused", size),
        megatron.ranks(megatron_cases, f"{name}/fused", size),
    ]
    if size == "tp1":
        sources.append(megatron.native(megatron_cases, f"{name}/fused", size))
    for source in sources:
        assert_same(merged(source, tmp_path / source.name, model), load_folder(model))


def test_a_hybrid_model_that_lost_a_layer_names_what_is_missing(megatron_cases, tmp_path):
    if not HYBRID:
        pytest.skip("megatron-core has it since 0.18")
    config = megatron.hf(megatron_cases, "llama")
    said = json.loads((config / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said | {"num_hidden_layers": 5}))
    source = megatron.native(megatron_cases, "llama/hybrid", "tp1")
    with pytest.raises(MappingError) as caught:
        merge_megatron(source, tmp_path / "out", MergeOptions(config=tmp_path))
    assert all(name.startswith("missing: decoder.layers.") for name in caught.value.names)
    assert Counter(name.split(".")[2] for name in caught.value.names) == {"8": 3, "9": 3}


@pytest.mark.parametrize("model_type", ["kimi_k2", "sarvam_mla"])
@pytest.mark.parametrize(("name", "size"), [row for row in LOADED if row[0] == "deepseek_v3"])
def test_deepseek_v3_by_another_name(megatron_cases, tmp_path, name, size, model_type):
    """The same layers, saved by real ranks: transformers has no class of this name to judge by."""
    model = megatron.hf(megatron_cases, name)
    config = json.loads((model / "config.json").read_text()) | {"model_type": model_type}
    renamed = tmp_path / "config"
    renamed.mkdir()
    (renamed / "config.json").write_text(json.dumps(config))
    source = megatron.saved(megatron_cases, name, size)
    assert_same(merged(source, tmp_path / "out", renamed), load_folder(model))


def test_every_way_to_save_is_among_them():
    ways = {way[:2] for way in SAVED.values()} | {("te", "default")}
    layouts = ("default", "per-layer", "singleton")
    assert ways == {(names, layout) for names in ("te", "local") for layout in layouts}


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_identity(megatron_cases, tmp_path, name):
    model = megatron.hf(megatron_cases, name)
    padded = ToMcoreOptions(vocab_multiple=64, layout="megatron-lm", write=UNSYNCED)
    convert_to_mcore(model, tmp_path / "there", padded)
    expected = load_folder(model)
    assert_same(merged(tmp_path / "there", tmp_path / "back", model), expected)
    ours = megatron.ours(megatron_cases, name)
    assert_same(merged(ours, tmp_path / "again", model, max_shard_size="100KB"), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNNAMED])
def test_transformers_computes_the_logits_of_the_original(megatron_cases, tmp_path, name):
    if name in FOREIGN:
        pytest.skip("transformers has no class of it")
    model = megatron.hf(megatron_cases, name)
    merged(megatron.native(megatron_cases, name, "tp1"), tmp_path / "out", model)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report[key] for key in ("missing_keys", "mismatched_keys"))
    known = load_file(megatron_cases / name / "reference.safetensors")
    assert torch.equal(logits_of(loaded.eval(), known["input_ids"]), known["logits"])


@pytest.mark.parametrize(("name", "ignored"), [("deepseek_v3_mtp", 44), ("mixtral", 0)])
def test_transformers_wants_what_is_written(megatron_cases, tmp_path, name, ignored):
    model = megatron.hf(megatron_cases, name)
    options = MergeOptions(config=model, write=WriteOptions(check_load=True, fsync=False))
    source = megatron.native(megatron_cases, name, "tp1")
    check = merge_megatron(source, tmp_path / "out", options).load_check
    assert check.num_ignored == ignored
    assert check.num_tensors + ignored == len(load_folder(model))


def test_two_layouts_without_a_config_are_compared_as_they_are(megatron_cases):
    one, other = (megatron.saved(megatron_cases, "mistral", size) for size in ("pp2", "vpp2"))
    result = verify_checkpoint(one, other)
    assert not result.equal
    assert all("no config.json" in side.warnings[-1] for side in (result.left, result.right))
    assert verify_checkpoint(one, one).equal
