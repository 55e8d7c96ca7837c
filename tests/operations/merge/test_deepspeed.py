"""Merging checkpoints of DeepSpeed: what it wrote itself, and what follows its layout.

The fixtures are written by `tests/real/write_deepspeed.py`, which says how.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ckpt_tool import (
    CheckpointError,
    LoraOptions,
    MergeOptions,
    NameOptions,
    VerifyOptions,
    WriteOptions,
    merge_deepspeed,
    verify_checkpoint,
)
from ckpt_tool.cli.app import app
from ckpt_tool.readers import open_checkpoint
from tests.real.write_deepspeed import CASES, FIXTURES
from tests.support.deepspeed_files import expected_of, make_step
from tests.support.merging import assert_same, load_folder

KEPT = MergeOptions(keep_names=True, dtype="keep", write=WriteOptions(fsync=False))
#: Whole models under the names of their class.
PLAIN = [name for name, case in CASES.items() if case.form in ("plain", "frozen")]
HEAD = "lm_head.weight"


def options(name: str, **more: object) -> MergeOptions:
    config = FIXTURES / name if (FIXTURES / name / "config.json").is_file() else None
    return MergeOptions(config=config, write=WriteOptions(fsync=False), **more)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLAIN if CASES[name].is_judged])
def test_the_model_is_what_zero_to_fp32_makes_rounded_as_the_config_says(name, tmp_path):
    result = merge_deepspeed(FIXTURES / name / "ckpt", tmp_path / "out", options(name))
    expected = load_file(FIXTURES / name / "expected.safetensors")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    del expected[HEAD]
    wanted = {key: tensor.to(dtype[CASES[name].dtype]) for key, tensor in expected.items()}
    assert_same(load_folder(tmp_path / "out"), wanted)
    assert list(result.dropped) == [HEAD]
    assert (result.format, result.step) == ("deepspeed", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLAIN if not CASES[name].is_judged])
def test_so_is_one_that_zero_to_fp32_cannot_read(name, tmp_path):
    merge_deepspeed(FIXTURES / name / "ckpt", tmp_path / "out", options(name))
    assert len(load_folder(tmp_path / "out")) == 14
    both = VerifyOptions(cast_reference=True)
    assert verify_checkpoint(FIXTURES / name / "ckpt", tmp_path / "out", both).equal


@pytest.mark.slow
def test_the_float32_weights_are_kept_if_they_are_to_be(tmp_path):
    name = "deepspeed0.19_z3_groups"
    kept = options(name, dtype="keep")
    merge_deepspeed(FIXTURES / name / "ckpt", tmp_path / "out", kept)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    del expected[HEAD]
    assert_same(load_folder(tmp_path / "out"), expected)
    result = verify_checkpoint(FIXTURES / name / "ckpt", tmp_path / "out")
    assert result.exact
    assert verify_checkpoint(tmp_path / "out", FIXTURES / name / "ckpt").exact


@pytest.mark.slow
def test_the_trainers_folder_is_taken_with_its_own_config(tmp_path):
    """The model that the Trainer saved beside it has the same weights."""
    run = FIXTURES / "deepspeed0.19_z2_trainer" / "ckpt"
    merge_deepspeed(run, tmp_path / "out", MergeOptions())
    saved = load_file(run / "checkpoint-2" / "model.safetensors")
    del saved[HEAD]
    assert_same(load_folder(tmp_path / "out"), saved)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md", "ckpt_manifest.json", "config.json", "generation_config.json",
        "model.safetensors",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["z1_lora", "z3_lora"])
def test_adapters_are_fused_into_what_was_frozen(name, tmp_path):
    name = f"deepspeed0.19_{name}"
    fused = options(name, lora=LoraOptions(alpha=8), dtype="keep")
    result = merge_deepspeed(FIXTURES / name / "ckpt", tmp_path / "out", fused)
    merged = load_folder(tmp_path / "out")
    assert len(merged) == 14
    assert result.lora is not None
    raw = load_file(FIXTURES / "deepspeed0.19_z3_lora" / "expected.safetensors")
    start = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = (raw[f"{start}.lora_{side}.default.weight"] for side in "AB")
    base = raw[f"{start}.base_layer.weight"].float()
    fused_here = merged["model.layers.0.self_attn.q_proj.weight"].float()
    if CASES[name].stage == 3:
        torch.testing.assert_close(fused_here, base + 4 * b @ a, rtol=1e-2, atol=1e-2)
    assert not torch.equal(fused_here, base)


@pytest.mark.parametrize("name", ["z2_excluded", "z3_excluded"])
def test_what_was_trained_alone_becomes_an_adapter(name, tmp_path):
    name = f"deepspeed0.19_{name}"
    alone = MergeOptions(lora=LoraOptions(alpha=8), dtype="keep")
    merge_deepspeed(FIXTURES / name / "ckpt", tmp_path / "out", alone)
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expected = load_file(FIXTURES / name / "expected.safetensors")
    assert_same(found, {key.replace(".default", ""): t for key, t in expected.items()})


@pytest.mark.parametrize(("stage", "world"), [(0, 2), (1, 3), (2, 1), (3, 4)])
def test_names_may_be_kept(tmp_path, stage, world):
    make_step(stage, world).write(tmp_path / "run")
    merge_deepspeed(tmp_path / "run", tmp_path / "out", KEPT)
    assert_same(load_folder(tmp_path / "out"), expected_of(stage))


def test_a_prefix_is_cut_off(tmp_path):
    """Lightning has the model as an attribute of its module."""
    state = {f"_forward_module.net.{name}": tensor for name, tensor in expected_of(2).items()}
    make_step(2, 2, [state], {}, {}).write(tmp_path / "run")
    chosen = MergeOptions(
        keep_names=True, dtype="keep", names=NameOptions(prefix="_forward_module.net")
    )
    merge_deepspeed(tmp_path / "run", tmp_path / "out", chosen)
    assert load_folder(tmp_path / "out").keys() == expected_of(2).keys()


def test_buffers_that_ranks_hold_otherwise_are_refused(tmp_path):
    step = make_step(3, 2)
    name = "zero_pp_rank_1_mp_rank_00_model_states.pt"
    step.files[name]["module"]["f.scale"] = step.files[name]["module"]["f.scale"] + 1
    step.write(tmp_path / "run")
    with pytest.raises(CheckpointError, match="1 copy differs between ranks") as caught:
        merge_deepspeed(tmp_path / "run", tmp_path / "out", KEPT)
    assert "f.scale" in str(caught.value.problems[0])
    assert not (tmp_path / "out").exists()


def test_a_damaged_partition_is_named_with_its_tensors(tmp_path):
    fixture = FIXTURES / "deepspeed0.19_z2_round_robin"
    run = shutil.copytree(fixture / "ckpt", tmp_path / "run")
    path = run / "global_step2" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    with change_bytes(run, path) as (offset, content):
        content[offset + 4] ^= 1
    with pytest.raises(CheckpointError) as caught:
        merge_deepspeed(run, tmp_path / "out", MergeOptions(config=fixture))
    said = "\n".join(map(str, caught.value.problems))
    assert path.name in said
    assert "weight" in said
    assert not (tmp_path / "out").exists()


@contextmanager
def change_bytes(run: Path, path: Path) -> Iterator[tuple[int, bytearray]]:
    """Where in a file the first block of a tensor lies, and its bytes, to be changed."""
    holdings = [h for entry in open_checkpoint(run).entries.values() for h in entry.holdings]
    offset = min(h.region.offset for h in holdings if h.region.path == str(path))
    content = bytearray(path.read_bytes())
    yield offset, content
    path.write_bytes(content)


@pytest.mark.slow
def test_the_command_recognises_it_and_says_what_it_took(tmp_path):
    fixture = FIXTURES / "deepspeed0.19_z3_groups"
    words = ["merge", str(fixture / "ckpt"), str(tmp_path / "out"), "--config", str(fixture)]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert (said["format"], said["step"]) == ("deepspeed", 2)
    assert said["casts"][0]["from"] == "float32"


@pytest.mark.parametrize("word", ["fsdp", "dcp"])
def test_another_word_says_which_is_right(tmp_path, word):
    make_step(2, 2).write(tmp_path / "run")
    result = CliRunner().invoke(app, ["merge", word, str(tmp_path / "run"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "ckpt merge deepspeed" in result.output


def test_what_is_missing_ends_the_command_with_2_and_writes_nothing(tmp_path):
    folder = make_step(2, 3).write(tmp_path / "run")
    (folder / "global_step7" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    words = ["merge", "deepspeed", str(folder), str(tmp_path / "out"), "--config", "none"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "no optimizer states of rank 1 of 3" in result.output
    assert not (tmp_path / "out").exists()
