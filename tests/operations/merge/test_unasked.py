"""What nobody asked for is said: float32 weights, many small files, sizes without a unit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ckpt_tool import MergeOptions, UsageError, merge_checkpoint
from ckpt_tool.cli.app import app
from ckpt_tool.operations.options import parse_size
from tests.support.merging import TINY, values, write_rank

STATE = {f"layers.{number}.weight": values(3, 4) + number for number in range(6)}


def run(*words: object) -> Result:
    done = CliRunner().invoke(app, ["merge", *map(str, words)])
    assert done.exit_code == 0, done.stderr
    return done


def find_line(done: Result) -> str:
    """What is said of the dtype; empty where nothing is."""
    return next((line for line in done.stdout.splitlines() if line.startswith("  dtype ")), "")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (TINY | {"torch_dtype": "float32"}, "as config.json says"),
        (
            {key: value for key, value in TINY.items() if "dtype" not in key},
            "as in the checkpoint: config.json names no dtype",
        ),
        (None, "as in the checkpoint"),
    ],
)
def test_float32_that_nobody_asked_for(
    config: dict[str, Any] | None, why: str, tmp_path: Path
) -> None:
    ranks = write_rank(tmp_path / "in", STATE, config)
    words = [ranks, tmp_path / "out", "--no-check-load"]
    words += ["--config", "none"] if config is None else []
    line = f"  dtype    float32, {why}; --dtype bfloat16 takes half the room"
    assert find_line(run(*words, "--dry-run")) == line
    assert json.loads(run(*words, "--dry-run", "--json").stdout)["float32"] == why
    assert find_line(run(*words)) == line
    for asked in ("float32", "keep", "bfloat16"):
        words[1] = tmp_path / asked
        assert find_line(run(*words, "--dtype", asked)) == ""


def test_other_dtypes_are_not_spoken_of(tmp_path: Path) -> None:
    narrow = {name: value.to(torch.bfloat16) for name, value in STATE.items()}
    ranks = write_rank(tmp_path / "in", narrow, TINY)
    done = run(ranks, tmp_path / "out", "--config", "none", "--json")
    assert json.loads(done.stdout)["float32"] is None


@pytest.mark.parametrize("size", ["5", "1", "999999", "0.5", "500"])
def test_a_small_number_without_a_unit_is_refused(size: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_size(size)
    assert size in str(refused.value)
    if float(size) >= 1:
        assert "without a unit" in str(refused.value)
        assert f"Write {size}GB for gigabytes, or {size}B if bytes are meant." in refused.value.hint


@pytest.mark.parametrize(
    ("size", "count"),
    [("5B", 5), ("5 kb", 5_000), ("1000000", 10**6), ("4GiB", 4 << 30), ("1.5MB", 1_500_000)],
)
def test_other_sizes_are_taken(size: str, count: int) -> None:
    assert parse_size(size) == count


def test_many_files_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = write_rank(tmp_path / "in", STATE, TINY)
    few = MergeOptions(keep_names=True, max_shard_size="60B")
    assert merge_checkpoint(ranks, tmp_path / "few", few).warnings == []
    monkeypatch.setattr("ckpt_tool.operations.merge_plan._MANY_FILES", 5)
    done = run(ranks, tmp_path / "many", "--config", "none", "--max-shard-size", "60B")
    assert done.stderr == (
        "ckpt: warning: the weights are in 6 files, each with what --max-shard-size 60B has room"
        " for; 5GB is usual\n"
    )
