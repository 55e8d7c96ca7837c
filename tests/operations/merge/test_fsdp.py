"""`merge_fsdp`: real sharded checkpoints become the model that was sharded, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ckpt_tool.common.errors import CheckpointError, MappingError, OutputError, UsageError
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from tests.real.fsdp_cases import WITH_REFERENCE
from tests.real.fsdp_reference import logits_of
from tests.support.merging import TINY, assert_same, load_folder, values, write_rank
from tests.support.versions import needs_transformers_5

#: The tensors are no model's.
UNCHECKED = WriteOptions(check_load=False)


@pytest.mark.parametrize("case", WITH_REFERENCE)
def test_a_merged_checkpoint_is_what_save_pretrained_writes(
    checkpoints: dict[str, Path], tmp_path: Path, case: str
) -> None:
    folder = checkpoints[case]
    result = merge_fsdp([folder], tmp_path / "out")
    expected = load_folder(folder / "reference")
    assert_same(load_folder(tmp_path / "out"), expected)
    assert result.num_tensors == len(expected)
    assert not result.warnings


@needs_transformers_5
@pytest.mark.parametrize("case", WITH_REFERENCE)
def test_a_merged_model_has_the_logits_of_the_model_that_was_sharded(
    checkpoints: dict[str, Path], tmp_path: Path, case: str
) -> None:
    import transformers

    folder = checkpoints[case]
    merge_fsdp([folder], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model, report = model_class.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    known = load_file(folder / "logits.safetensors")
    assert torch.equal(logits_of(model, known["input_ids"]), known["logits"])


def test_buffers_of_every_kind_are_merged_with_their_names(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = checkpoints["fsdp2_buffers_w2"]
    merge_fsdp([folder], tmp_path / "out", MergeOptions(keep_names=True))
    assert_same(load_folder(tmp_path / "out"), load_file(folder / "raw_state_dict.safetensors"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "ckpt_manifest.json",
        "model.safetensors",
    ]


def test_ranks_may_lie_in_several_folders(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor = checkpoints["fsdp2_w3"] / "actor"
    nodes = [tmp_path / "node0", tmp_path / "node1"]
    shutil.copytree(actor / "huggingface", nodes[0] / "huggingface")
    for rank, node in ((0, nodes[0]), (1, nodes[1]), (2, nodes[0])):
        node.mkdir(exist_ok=True)
        shutil.copy(actor / f"model_world_size_3_rank_{rank}.pt", node)
    merge_fsdp(nodes, tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), load_folder(actor.parent / "reference"))
    with pytest.raises(CheckpointError, match=r"1 problem") as error:
        merge_fsdp(nodes[:1], tmp_path / "other")
    assert "rank 1 of 3 missing" in error.value.problems[0].message
    assert not (tmp_path / "other").exists()


def test_files_are_cut_named_and_indexed_as_on_the_hub(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = checkpoints["fsdp2_layers12_w2"]
    merge_fsdp([folder], tmp_path / "out", MergeOptions(max_shard_size="50KB"))
    state = load_file(folder / "raw_state_dict.safetensors")
    plan = make_plan(folder, "fsdp")
    in_order = {name: state[name] for name in plan.checkpoint.entries}
    expected = split_torch_state_dict_into_shards(
        in_order,
        max_shard_size="50KB",
        filename_pattern="model{suffix}.safetensors",
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == expected.tensor_to_filename
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    written = {p.name for p in (tmp_path / "out").glob("*.safetensors")}
    assert written == set(expected.tensor_to_filename.values())
    assert_same(load_folder(tmp_path / "out"), state)


def test_a_file_is_aligned_and_says_its_framework(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    merge_fsdp([checkpoints["fsdp2_deepseek_w2"]], tmp_path / "out", MergeOptions(dtype="bfloat16"))
    path = tmp_path / "out" / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0
    rows = json.loads(path.read_bytes()[8 : 8 + header])
    assert rows.pop("__metadata__") == {"format": "pt"}
    sizes = {"F32": 4, "BF16": 2}
    assert {row["dtype"] for row in rows.values()} == set(sizes)
    assert all(row["data_offsets"][0] % sizes[row["dtype"]] == 0 for row in rows.values())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@needs_transformers_5
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "keep"])
@pytest.mark.parametrize("case", ["fsdp2_w3", "fsdp2_bf16_w2", "fsdp2_shard1_w2"])
def test_casts_are_those_of_torch(
    checkpoints: dict[str, Path], tmp_path: Path, case: str, dtype: str
) -> None:
    folder = checkpoints[case]
    result = merge_fsdp([folder], tmp_path / "out", MergeOptions(dtype=dtype))
    source = load_folder(folder / "reference")
    target = None if dtype == "keep" else getattr(torch, dtype)
    assert_same(load_folder(tmp_path / "out"), {k: t.to(target) for k, t in source.items()})
    errors = [(t.double() - t.to(target).double()).abs().max().item() for t in source.values()]
    changed = target is not None and any(t.dtype != target for t in source.values())
    assert [cast.max_abs_error for cast in result.casts] == ([max(errors)] if changed else [])
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    stored = target or next(iter(source.values())).dtype
    assert said["dtype"] == str(stored).removeprefix("torch.")


@needs_transformers_5
def test_auto_follows_the_config_and_keeps_in_float32_what_transformers_does(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_deepseek_w2"] / "actor", actor)
    config = actor / "huggingface" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    merge_fsdp([actor], tmp_path / "out")
    merged = load_folder(tmp_path / "out")
    wide = {name for name, tensor in merged.items() if tensor.dtype == torch.float32}
    reference = checkpoints["fsdp2_deepseek_w2"] / "reference"
    held = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.bfloat16).state_dict()
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in wide
    assert wide == {name for name, tensor in held.items() if tensor.dtype == torch.float32}
    assert {t.dtype for name, t in merged.items() if name not in wide} == {torch.bfloat16}


def test_integers_and_bools_are_never_cast(tmp_path: Path) -> None:
    state = {
        "a.weight": values(4, 4),
        "a.steps": torch.arange(5),
        "a.mask": torch.tensor([True, False, True]),
    }
    write_rank(tmp_path / "in", state, TINY)
    merge_fsdp([tmp_path / "in"], tmp_path / "out", MergeOptions(dtype="bfloat16", write=UNCHECKED))
    merged = load_folder(tmp_path / "out")
    assert_same(merged, state | {"a.weight": state["a.weight"].bfloat16()})


def test_an_overflow_is_said(tmp_path: Path) -> None:
    write_rank(tmp_path / "in", {"a.weight": torch.tensor([1.0, 70000.0])}, TINY)
    result = merge_fsdp(
        [tmp_path / "in"], tmp_path / "out", MergeOptions(dtype="float16", write=UNCHECKED)
    )
    assert result.casts[0].max_abs_error == float("inf")
    assert "(some float32 values are too large for float16): a.weight" in result.warnings[0]


def test_tied_heads_are_dropped_and_the_reason_recorded(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    result = merge_fsdp([checkpoints["fsdp2_tied_w2"]], tmp_path / "out")
    assert "lm_head.weight" not in load_folder(tmp_path / "out")
    assert list(result.dropped) == ["lm_head.weight"]
    manifest = json.loads((tmp_path / "out" / "ckpt_manifest.json").read_text())
    assert manifest["dropped"] == result.dropped


def test_a_head_that_differs_is_not_dropped_but_refused(tmp_path: Path) -> None:
    state = {"model.embed_tokens.weight": values(16, 8), "lm_head.weight": values(16, 8, start=2)}
    write_rank(tmp_path / "in", state, TINY | {"tie_word_embeddings": True})
    with pytest.raises(MappingError, match="they differ"):
        merge_fsdp([tmp_path / "in"], tmp_path / "out")
    options = MergeOptions(tie_word_embeddings=False, write=UNCHECKED)
    merge_fsdp([tmp_path / "in"], tmp_path / "out", options)
    assert_same(load_folder(tmp_path / "out"), state)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_a_critic_gets_the_class_its_weights_are_of(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    merge_fsdp([checkpoints["fsdp2_tokencls_w2"]], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForTokenClassification"]


def test_side_files_are_copied_byte_for_byte(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", actor)
    beside = actor / "huggingface"
    (beside / "modeling_custom.py").write_bytes(b"# remote code\r\n")
    (beside / "preprocessor_config.json").write_bytes(b'{"a":  1}')
    (beside / "model.safetensors").write_bytes(b"not to be copied")
    merge_fsdp([actor], tmp_path / "out")
    copied = {p.name for p in (tmp_path / "out").iterdir()}
    assert copied - {"model.safetensors", "ckpt_manifest.json", "config.json", "README.md"} == {
        "modeling_custom.py",
        "preprocessor_config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    for path in beside.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert_same(load_folder(tmp_path / "out"), load_folder(checkpoints["fsdp2_w2"] / "reference"))


@needs_transformers_5
def test_a_config_of_transformers_5_gets_the_keys_of_4_beside_its_own(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = checkpoints["fsdp2_moe_w2"]
    merge_fsdp([folder], tmp_path / "out")
    before = json.loads((folder / "actor" / "huggingface" / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: after[key] for key in before} == before
    assert after["rope_theta"] == before["rope_parameters"]["rope_theta"]
    assert after["num_experts"] == before["num_local_experts"]
    assert after["torch_dtype"] == "float32"


def test_config_and_tokenizer_may_come_from_elsewhere(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", actor)
    shutil.move(actor / "huggingface", tmp_path / "base")
    with pytest.raises(UsageError, match=r"no config\.json"):
        merge_fsdp([actor], tmp_path / "out")
    merge_fsdp([actor], tmp_path / "out", MergeOptions(config=str(tmp_path / "base")))
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "base" / "config.json").exists()


def test_config_beside_the_shards_is_found(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", actor)
    for path in (actor / "huggingface").iterdir():
        shutil.move(path, actor)
    (actor / "huggingface").rmdir()
    merge_fsdp([actor], tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert "tokenizer.json" in names
    assert not any(name.endswith(".pt") or name == "fsdp_config.json" for name in names)


def test_replicas_are_compared_when_asked_or_when_nothing_else_says_they_are(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_hsdp_w4"] / "actor", actor)
    entry = make_plan(actor, "fsdp").checkpoint.entries["model.norm.weight"]
    copy = next(other for _, other in entry.replicas())
    with open(copy.region.path, "r+b") as file:
        file.seek(copy.region.offset)
        byte = file.read(1)[0]
        file.seek(copy.region.offset)
        file.write(bytes([byte ^ 1]))
    merge_fsdp([actor], tmp_path / "out")
    with pytest.raises(CheckpointError) as error:
        merge_fsdp([actor], tmp_path / "other", MergeOptions(check_replicas=True))
    assert [p.where for p in error.value.problems] == ["model.norm.weight"]
    assert f"rank {copy.rank} differs from rank" in error.value.problems[0].message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MergeOptions(dtype="int8"), "`dtype='int8'`"),
        (MergeOptions(max_shard_size="five"), "`max_shard_size='five'`: is not a size"),
        (MergeOptions(max_shard_size="0GB"), "`max_shard_size='0GB'`: is not a size"),
        (MergeOptions(max_shard_size="9" * 400), "999'`: is not a size"),
        (MergeOptions(jobs=-1), "`jobs=-1`"),
        (MergeOptions(config=Path("/nowhere")), "/nowhere/config.json"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, options: MergeOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        merge_fsdp([checkpoints["fsdp2_w2"]], tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_the_output_does_not_depend_on_threads_or_repetition(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for name, jobs in (("one", 1), ("four", 4), ("again", 4)):
        options = MergeOptions(jobs=jobs, dtype="bfloat16", max_shard_size="30KB")
        merge_fsdp([checkpoints["fsdp2_moe_w2"]], tmp_path / name, options)
    contents = [
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for name in ("one", "four", "again")
    ]
    assert contents[0] == contents[1] == contents[2]


def test_an_output_that_would_swallow_its_source_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    actor = tmp_path / "step" / "actor"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", actor)
    overwrite = MergeOptions(write=WriteOptions(overwrite=True))
    for out in (actor, actor.parent, actor / "huggingface"):
        with pytest.raises(OutputError, match="the checkpoint itself"):
            merge_fsdp([actor], out, overwrite)
    merge_fsdp([actor], actor / "merged")
    assert load_folder(actor / "merged")
