"""What `merge megatron` refuses: damage, and models that are not the config's. All of it listed."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from ckpt_tool import MergeOptions, merge_megatron, open_checkpoint
from ckpt_tool.common.errors import CheckpointError, FormatError, MappingError
from tests.operations.to_mcore.test_inputs import rewritten
from tests.support import megatron
from tests.support.resaving import resaved

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def source(megatron_cases, tmp_path) -> Path:
    """A copy of what two tensor-parallel ranks saved, in several files."""
    return shutil.copytree(megatron.saved(megatron_cases, "qwen3_moe", "tp2"), tmp_path / "in")


@pytest.fixture
def refused(megatron_cases, tmp_path):
    """What merging raises; nothing is written."""

    def run(source: Path, kind: type, config: Path | None = None, **options):
        out = tmp_path / "out"
        config = config or megatron.hf(megatron_cases, "qwen3_moe")
        with pytest.raises(kind) as error:
            merge_megatron(source, out, MergeOptions(config=config, **options))
        assert not out.exists()
        assert not list(tmp_path.glob(".*partial"))
        return error.value

    return run


def test_a_missing_file_is_named_with_every_tensor_it_takes_along(source, refused):
    file = sorted(source.glob("__1_*.distcp"))[0]
    file.unlink()
    error = refused(source, CheckpointError)
    assert [p.kind for p in error.problems].count("missing-file") == 1
    assert any(str(file) == problem.where for problem in error.problems)


@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_a_truncated_file(source, refused, left):
    file = sorted(source.glob("__0_*.distcp"))[0]
    os.truncate(file, int(file.stat().st_size * left))
    error = refused(source, CheckpointError)
    assert {problem.kind for problem in error.problems} == {"unreadable"}
    assert all(file.name in problem.message for problem in error.problems)


def test_damaged_metadata(source, refused):
    os.truncate(source / ".metadata", 1000)
    refused(source, FormatError)


def test_missing_and_unexpected_tensors_are_all_listed(megatron_cases, tmp_path, refused):
    def change(tensors):
        tensors.pop("decoder.final_layernorm.weight")
        tensors.pop("decoder.layers.self_attention.linear_qkv.weight")
        return tensors | {"decoder.layers.mlp.shared_experts.gate_weight": torch.ones(4, 1, 64)}

    native = megatron.native(megatron_cases, "qwen3_moe", "tp1")
    error = refused(resaved(native, tmp_path / "less", change), MappingError)
    assert sorted(error.names) == [
        "missing: decoder.final_layernorm.weight",
        "missing: decoder.layers.self_attention.linear_qkv.weight",
        "unexpected: decoder.layers.mlp.shared_experts.gate_weight",
    ]
    assert "2 missing and 1 unexpected tensors" in error.message
    assert "qwen3_moe of 4 layers" in error.message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocab_size": 253}, "expected 253 rows (vocab_size) or more"),
        ({"hidden_size": 32}, "expected [32]"),
        ({"moe_intermediate_size": 20}, "[40, 64], expected [20, 64]"),
        ({"num_attention_heads": 8}, "expected 288 rows"),
        ({"num_hidden_layers": 5}, "expected [5]"),
        ({"num_experts": 8, "num_local_experts": 8}, "expected [4, 8]"),
        ({"model_type": "qwen2_moe"}, "missing: "),
        ({"tie_word_embeddings": True}, "but they differ"),
    ],
)
def test_a_config_of_another_model(megatron_cases, tmp_path, refused, changes, told):
    source = megatron.saved(megatron_cases, "qwen3_moe", "tp2")
    hf = megatron.hf(megatron_cases, "qwen3_moe")
    config = rewritten(hf, tmp_path / "config", config=changes)
    error = refused(source, MappingError, config)
    assert told in " ".join([error.message, *error.names])


def test_a_config_of_which_one_of_two_names_was_changed(megatron_cases, tmp_path, refused):
    """transformers 5 writes the one, and a merge the other too, which transformers 4 reads."""
    source = megatron.saved(megatron_cases, "qwen3_moe", "tp2")
    hf = megatron.hf(megatron_cases, "qwen3_moe")
    config = rewritten(hf, tmp_path / "config", config={"num_experts": 8, "num_local_experts": 4})
    said = "config.json: num_experts is 8, but num_local_experts, another name for it, is 4"
    assert refused(source, FormatError, config).message.endswith(said)


def test_a_vocabulary_that_padding_does_not_explain(megatron_cases, tmp_path, refused):
    def large(tensors):
        name = "embedding.word_embeddings.weight"
        return tensors | {name: torch.zeros(40_000, 64)}

    native = megatron.native(megatron_cases, "qwen3_moe", "tp1")
    error = refused(resaved(native, tmp_path / "large", large), MappingError)
    assert "more than padding explains" in " ".join(error.names)


def test_a_family_without_a_table(megatron_cases, tmp_path, refused, source):
    hf = megatron.hf(megatron_cases, "qwen3_moe")
    config = rewritten(hf, tmp_path / "config", config={"model_type": "olmo2"})
    error = refused(source, MappingError, config)
    assert "'olmo2' has no table of megatron-core names; supported: llama" in error.message
    assert "A new model family" in str(error.hint)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("decoder.layers.1.mlp.linear_fc1.weight_v", "decoder.layers.1.mlp.linear_fc1.weight_v"),
        ("decoder.layers.2.mlp.linear_fc1.weight_w", "decoder.layers.2.mlp.linear_fc1.weight_w"),
    ],
)
def test_half_of_a_gated_layer(megatron_cases, tmp_path, refused, gone, told):
    saved = megatron.saved(megatron_cases, "llama", "tp1")
    source = resaved(saved, tmp_path / "half", lambda t: {n: x for n, x in t.items() if n != gone})
    error = refused(source, MappingError, megatron.hf(megatron_cases, "llama"))
    assert list(error.names) == [told]


def test_an_expert_that_is_not_there(megatron_cases, tmp_path, refused):
    saved = megatron.saved(megatron_cases, "qwen3_moe", "tp1")

    def without(tensors):
        return {n: t for n, t in tensors.items() if ".2.mlp.experts.experts.1." not in n}

    error = refused(resaved(saved, tmp_path / "gap", without), MappingError)
    assert len(error.names) == 2
    assert all("experts 0, 2, 3" in name for name in error.names)


def test_a_pickle_that_asks_for_code_is_refused(source, refused):
    (source / ".metadata").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    assert "os.system" in refused(source, FormatError).message


def test_damage_to_what_is_left_out_does_not_matter(megatron_cases, tmp_path):
    native = megatron.native(megatron_cases, "llama", "tp1")
    source = resaved(native, tmp_path / "in", lambda t: t | {"optimizer.a": torch.ones(200_000)})
    (file,) = source.glob("*.distcp")
    os.truncate(file, file.stat().st_size - 10)
    problems = open_checkpoint(source).problems
    assert [problem.where for problem in problems] == ["optimizer.a"]
    options = MergeOptions(config=megatron.hf(megatron_cases, "llama"))
    assert merge_megatron(source, tmp_path / "out", options).num_tensors == 39


def whole(tensors, module, parts):
    """The parts of every ``module`` put together, as Megatron-FSDP has had them."""
    found = dict(tensors)
    for name in tensors:
        stem, end, last = name.rpartition(f"{module}.weight.{parts[0]}")
        if end and not last:
            pieces = [found.pop(f"{stem}{module}.weight.{part}") for part in parts]
            found[f"{stem}{module}.weight"] = torch.cat(pieces)
    assert len(found) < len(tensors)
    return found


def test_rows_of_delta_net_under_the_keys_of_another_trainer(megatron_cases, tmp_path, refused):
    def change(tensors):
        names = ("query", "key", "value", "z", "beta", "alpha")
        return whole(whole(tensors, "in_proj", names), "conv1d", names[:3])

    source = resaved(megatron.saved(megatron_cases, "qwen3_next", "tp1"), tmp_path / "in", change)
    error = refused(source, MappingError, megatron.hf(megatron_cases, "qwen3_next"))
    assert "are ordered as ms-swift's by their keys, and are megatron-core's by" in error.message
    assert "torch_dist" in str(error.hint)


def test_mamba_of_megatron_fsdp_has_no_known_order(megatron_cases, tmp_path, refused):
    saved = megatron.saved(megatron_cases, "nemotron_h", "tp1")
    source = resaved(
        saved, tmp_path / "in", lambda t: whole(t, "in_proj", ("z", "x", "B", "C", "dt"))
    )
    error = refused(source, MappingError, megatron.hf(megatron_cases, "nemotron_h"))
    assert "mixer.in_proj.weight is whole" in error.message
