"""Merging checkpoints of DeepSpeed: what it wrote itself, and what follows its layout.

The fixtures are written by `tests/real/write_deepspeed.py`, which says how.
"""

import json
import shutil
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
    WriteOptions,
    merge_deepspeed,
    verify_checkpoint,
)
from ckpt_tool.cli.app import app
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


@pytest.mark.parametrize("name", [name for name in PLAIN if not CASES[name].is_judged])
def test_so_is_one_that_zero_to_fp32_cannot_read(name, tmp_path):
    merge_deepspeed(FIXTURES / name / "ckpt", tmp_path / "out", options(name))
    assert len(load_folder(tmp_path / "out")) == 14
    assert verify_checkpoint(
        FIXTURES / name / "ckpt", tmp_path / "out", cast_options()
    ).equal


def cast_options():
    from ckpt_tool import VerifyOptions

    return VerifyOptions(cast_reference=True)
