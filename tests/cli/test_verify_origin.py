"""`ckpt verify A B --origin C`: who moved what, beside the verdict on A and B."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.support.verifying import Tensors, save

NAMES = [f"model.layers.{n}.mlp.{part}_proj.weight" for n in range(2) for part in ("up", "down")]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """The origin, and two models: one moved the first tensor, the other the first two."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(8, 4, generator=generator) for name in NAMES}
    ours: Tensors = base | {NAMES[0]: base[NAMES[0]] * 1.25}
    theirs: Tensors = base | {NAMES[0]: base[NAMES[0]] * 0.5, NAMES[1]: base[NAMES[1]] * 2}
    sides = {"base": base, "ours": ours, "theirs": theirs}
    return {name: save(each, tmp_path / f"{name}.safetensors") for name, each in sides.items()}


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["verify", *map(str, arguments)])


def test_who_moved_what(models: dict[str, Path]) -> None:
    result = run(models["ours"], models["theirs"], "--origin", models["base"])
    assert result.exit_code == 1
    text = result.stdout.split("From ", 1)[1]
    first, heads, total, *rows = [line.split() for line in text.splitlines()]
    sentence = "of 4 tensors the checkpoint moved 1, the reference 2, both 1"
    assert " ".join(first).endswith(sentence)
    assert heads == ["tensor", "checkpoint", "reference", "apart", "cosine"]
    assert total[0] == "all"
    assert rows == [
        [NAMES[1], "0", "1", "1"],
        [NAMES[0], "0.25", "0.5", "0.75", "-1.00000"],
    ]


def test_the_verdict_is_on_the_first_two(models: dict[str, Path]) -> None:
    result = run(models["ours"], models["ours"], "--origin", models["base"])
    assert result.exit_code == 0
    assert "the checkpoint moved 1, the reference 1, both 1" in result.stdout


def test_json_and_report_have_it(models: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    told = ("--origin", models["base"], "--json", "--report", page)
    found = json.loads(run(models["ours"], models["theirs"], *told).stdout)["origin"]
    moves = {each["name"]: each["checkpoint"] for each in found["moves"]}
    assert moves == pytest.approx(dict.fromkeys(NAMES, 0) | {NAMES[0]: 0.25})
    assert found["path"] == str(models["base"])
    assert "Who moved what" in page.read_text()


def test_an_origin_without_a_common_tensor_is_an_error(
    models: dict[str, Path], tmp_path: Path
) -> None:
    other = save({"other": torch.ones(3)}, tmp_path / "other.safetensors")
    result = run(models["ours"], models["theirs"], "--origin", other)
    assert result.exit_code == 2
    assert f"--origin {other}: has no tensor" in result.stderr
    missing = run(models["ours"], models["theirs"], "--origin", tmp_path / "none")
    assert missing.exit_code == 2


def test_what_has_no_counterpart_is_left_out_and_said(
    models: dict[str, Path], tmp_path: Path
) -> None:
    part = save({NAMES[0]: torch.ones(8, 4)}, tmp_path / "part.safetensors")
    result = run(models["ours"], models["theirs"], "--origin", part)
    assert "left out 3 tensors without a counterpart" in result.stdout
