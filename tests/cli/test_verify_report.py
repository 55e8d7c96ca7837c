"""`ckpt verify --heatmap` and `--report`: nothing that differs looks equal, no name is trusted."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.support.merging import TINY, values, write_rank
from tests.support.verifying import Tensors, merged, planted

UP = "model.layers.1.mlp.up_proj.weight"


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["verify", *map(str, arguments)])


@pytest.fixture
def case(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["fsdp2_w2"]


def cells(text: str) -> dict[tuple[str, str], str]:
    """The marks of the layers, by layer and short name of the module."""
    lines = iter(text.splitlines())
    header = next(line for line in lines if line.lstrip().startswith("layer ")).split()[1:]
    rows = [line.split() for line in takewhile(re.compile(r" +\d+ ").match, lines)]
    assert all(len(row) == len(header) + 1 for row in rows)
    return {
        (row[0], column): mark for row in rows for column, mark in zip(header, row[1:], strict=True)
    }


def test_equal_layers_have_no_marks(case: Path) -> None:
    result = run(case, case / "reference", "--heatmap")
    assert result.exit_code == 0
    found = cells(result.stdout)
    assert {layer for layer, _ in found} == {"0", "1"}
    assert {"q", "k", "v", "o", "gate", "up", "down"} <= {module for _, module in found}
    assert set(found.values()) == {"·"}


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        pytest.param(lambda t: t.mul_(1.003), "3e-3", id="values"),
        pytest.param(lambda t: t.neg_(), "2.0", id="negated"),
        pytest.param(lambda t: t[:50], "!", id="shape"),
        pytest.param(lambda t: t[0, :1].fill_(torch.nan), "!", id="nan"),
        pytest.param(lambda t: t[0, :1].fill_(torch.inf), "!", id="infinity"),
    ],
)
def test_what_differs_is_marked(
    case: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], mark: str
) -> None:
    def apply(tensors: Tensors) -> None:
        changed = change(tensors[UP])
        if changed.dim() == 2 and changed.shape[1] == 32:
            tensors[UP] = changed

    result = run(planted(case / "reference", tmp_path / "other", apply), case, "--heatmap")
    assert result.exit_code == 1
    marked = {place: found for place, found in cells(result.stdout).items() if found != "·"}
    assert marked == {("1", "up"): mark}


def test_another_dtype_of_equal_values_is_marked(case: Path, tmp_path: Path) -> None:
    other = planted(case / "reference", tmp_path / "x", lambda t: t.update({UP: t[UP].double()}))
    found = cells(run(other, case, "--heatmap").stdout)
    assert [place for place, mark in found.items() if mark != "·"] == [("1", "up")]


def test_the_report_stands_alone_and_says_what_stdout_says(case: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[UP][3, 4] = 2
        del tensors["lm_head.weight"]

    other = planted(case / "reference", tmp_path / "other", change)
    report = tmp_path / "report.html"
    result = run(other, case, "--report", report)
    assert result.exit_code == 1
    assert f"Report: {report}" in result.stdout.replace("\n", "")
    text = report.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    words = re.sub(r"<[^>]*>", "", text)  # names may break at their dots
    assert "Different" in words
    assert UP in words
    assert "lm_head.weight" in words
    assert not re.search(r"""(src|href)=["']?(?!#|data:)|url\(|@import""", text)

    again = run(case, case / "reference", "--report", report, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["equal"] is True
    text = report.read_text(encoding="utf-8")
    assert "Different" not in text
    assert UP not in re.sub(r"<[^>]*>", "", text)


def test_a_report_of_a_lenient_comparison_says_that_it_was(case: Path, tmp_path: Path) -> None:
    rounded = merged(case, tmp_path / "rounded", dtype="bfloat16")
    for flags in (["--cast-reference"], ["--cast-reference", "--atol", "0.12345"]):
        run(rounded, case, *flags, "--report", tmp_path / "report.html")
        words = re.sub(r"<[^>]*>", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
        assert "bit for bit" not in words
        assert "round" in words
        assert ("0.12345" in words) == ("--atol" in flags)


def test_a_report_that_cannot_be_written_is_exit_2(case: Path, tmp_path: Path) -> None:
    result = run(case, case / "reference", "--report", tmp_path / "gone" / "report.html")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "gone is no folder" in result.stderr


def test_a_report_takes_the_place_of_nothing_but_a_report(case: Path, tmp_path: Path) -> None:
    shutil.copytree(case, tmp_path / "case")
    weights = sorted((tmp_path / "case").rglob("*.*"))
    before = [path.read_bytes() for path in weights]
    (tmp_path / "link.html").symlink_to(weights[0])
    (tmp_path / "dangling.html").symlink_to("nowhere")
    (tmp_path / "folder.html").mkdir()
    places = {**dict.fromkeys(weights, "is no report of ckpt"),
              tmp_path / "link.html": "is a symbolic link",
              tmp_path / "dangling.html": "is a symbolic link",
              tmp_path / "folder.html": "is not a file",
              Path("/dev/full"): "is not a file"}  # fmt: skip
    for place, said in places.items():
        result = run(tmp_path / "case", case / "reference", "--report", place)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
    assert [path.read_bytes() for path in weights] == before
    for _ in range(2):  # the second time in place of the first
        assert run(case, case / "reference", "--report", tmp_path / "r.html").exit_code == 0
    assert not (tmp_path / "nowhere").exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"case", "link.html", "dangling.html", "folder.html", "r.html"}


def named(tmp_path: Path, name: str) -> Result:
    """The result where a name is missing, unexpected and mismatched."""
    for side, start in (("a", 1), ("b", 2)):
        state = {name: values(2, start=start), f"{side}.{name}": values(2)}
        write_rank(tmp_path / side, state, TINY)
    result = run(tmp_path / "a", tmp_path / "b", "--heatmap", "--report", tmp_path / "r.html")
    assert (result.exit_code, result.stderr) == (1, "")
    return result


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>.weight", "[bold red]x[/].weight", "[/nothing].weight"]
)
def test_names_are_shown_and_never_obeyed(tmp_path: Path, name: str) -> None:
    """Whoever writes a checkpoint chooses the names."""
    result = named(tmp_path, name)
    for shown in (name, f"a.{name}", f"b.{name}"):
        assert f" {shown}\n" in result.stdout or f"\n{shown} " in result.stdout
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text


def test_names_do_not_control_the_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in named(tmp_path, "a.\x1b[2J.weight").stdout


def test_names_are_not_pictures(tmp_path: Path) -> None:
    assert "a.b.:fire:.weight" in named(tmp_path, "b.:fire:.weight").stdout
