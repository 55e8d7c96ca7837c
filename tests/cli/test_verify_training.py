"""`ckpt verify` on what training did: `--origin`, `--totals`, `--rank`, and `--logits`."""

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


def test_totals_are_a_table_of_layers_and_one_of_modules(models: dict[str, Path]) -> None:
    result = run(models["theirs"], models["base"], "--totals")
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines()]
    for row in (
        ["layer", "tensors", "changed", "elements", "changed", "|a-b|", "/", "|b|"],
        ["model.layers.1", "0", "of", "2", "0", "%", "0"],
        ["model.layers.*.mlp.down_proj", "1", "of", "2", "50", "%"],
    ):
        assert row in [found[: len(row)] for found in rows]
    assert "tensors changed" not in run(models["theirs"], models["base"]).stdout


def test_a_rank_is_found_of_the_rows_that_are_shown(models: dict[str, Path]) -> None:
    told = ("--rank", "--top", 1)
    text = run(models["theirs"], models["base"], *told).stdout
    assert text.count("rank: a LoRA of rank 4 (of 4) would hold 99% of the difference") == 1
    assert "LoRA" not in run(models["theirs"], models["base"]).stdout
    found = json.loads(run(models["theirs"], models["base"], *told, "--json").stdout)
    spectra = {each["name"]: each["spectrum"] for each in found["mismatched"]}
    assert [each["full"] for each in spectra.values() if each is not None] == [4]


def test_logits_of_a_file_are_refused_by_the_flag(models: dict[str, Path]) -> None:
    result = run(models["ours"], models["base"], "--logits", "some text")
    assert result.exit_code == 2
    assert f"--logits: {models['ours']} is no folder of a Hugging Face model" in result.stderr
