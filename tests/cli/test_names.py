"""Names are somebody else's text: whatever a command prints of them is shown, never obeyed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.support.merging import TINY, values, write_rank

#: A name, and how it is shown.
NAMES = {
    "a\n\x1b[31mred\x1b]0;title\x07.weight": r"a\x0a\x1b[31mred\x1b]0;title\x07.weight",
    "\r\x08\x9b2J.weight": r"\x0d\x08\x9b2J.weight",
    "model.\u202ethgiew.": r"model.\u202ethgiew.",
    "half.\ud800.weight": r"half.\ud800.weight",
    "[/red] [bold]x[/].weight": "[/red] [bold]x[/].weight",
    "link=[link=https://example.org]here[/link]": "link=[link=https://example.org]here[/link]",
    "model.:fire:.weight": "model.:fire:.weight",
}
hostile = pytest.mark.parametrize(("name", "shown"), NAMES.items(), ids=range(len(NAMES)))


def run(*arguments: object) -> Result:
    """The result, once nothing is in it but what can be seen."""
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, list(map(str, arguments)))
    printed = result.stdout + result.stderr
    assert not [c for c in printed if not c.isprintable() and c != "\n"]
    assert "bug" not in printed
    return result


@pytest.fixture
def folder(tmp_path: Path, name: str) -> Path:
    write_rank(tmp_path / "in", {name: values(2, 2)}, None)
    return tmp_path / "in"


@hostile
def test_inspect(folder: Path, name: str, shown: str) -> None:
    for flags in ([], ["--all"], ["--shards"]):
        assert shown in run("inspect", folder, *flags).stdout
    assert [
        row["name"] for row in json.loads(run("inspect", folder, "--json").stdout)["tensors"]
    ] == [name]


@hostile
def test_problems(folder: Path, name: str, shown: str) -> None:
    (folder / "model_world_size_1_rank_0.pt").rename(folder / "model_world_size_2_rank_0.pt")
    write_rank(folder, {}, None, 1, 2)
    found = run("inspect", folder, "--problems")
    refused = run("merge", "fsdp", folder, folder.parent / "out", "--config", "none")
    for result, text in ((found, found.stdout), (refused, refused.stderr)):
        assert result.exit_code == 2
        assert shown in text.replace("\n", "")


@hostile
def test_merge_and_its_plan(folder: Path, name: str, shown: str) -> None:
    for flags in (["--dry-run"], []):
        result = run("merge", "fsdp", folder, folder.parent / "out", "--config", "none", *flags)
        assert result.exit_code == 0 or shown in result.stderr


@hostile
@pytest.mark.slow
def test_verify_and_its_report(folder: Path, name: str, shown: str) -> None:
    other, report = folder.parent / "other", folder.parent / "report.html"
    write_rank(other, {name: values(2, 2, start=7), f"more.{name}": values(2)}, TINY)
    result = run("verify", folder, other, "--report", report, "--heatmap")
    assert result.exit_code == 1
    assert f"\n{shown} " in result.stdout
    assert f"more.{shown}" in result.stdout
    page = report.read_text(encoding="utf-8")
    assert not [c for c in page if not c.isprintable() and c != "\n"]
    assert result.stdout.count(shown) >= 2
