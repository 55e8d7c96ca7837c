"""`ckpt verify` under torchrun: one speaks, all have the same exit code."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.torchrun import ranks_command
from tests.support.verifying import Tensors, planted

PROJECT = Path(__file__).resolve().parents[2]
UP = "model.layers.1.mlp.up_proj.weight"

#: The program, but each rank writes down how it ended; torchrun tells of the first failure only.
RECORDING = """
import os, sys
from pathlib import Path
from ckpt_tool.cli.app import main
try:
    main()
except SystemExit as stop:
    (Path(__file__).parent / f"rank{os.environ['RANK']}").write_text(str(stop.code or 0))
    raise
"""


def run(
    folder: Path, ranks: int, *arguments: object
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What was printed, and the exit code of each rank."""
    program = folder / "recording.py"
    program.write_text(RECORDING)
    launcher = ranks_command(ranks)
    done = subprocess.run(
        [*launcher, str(program), "verify", *map(str, arguments)],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, [(folder / f"rank{rank}").read_text() for rank in range(ranks)]


@pytest.fixture
def case(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["fsdp2_w2"]


def test_equal_is_said_once(case: Path, tmp_path: Path) -> None:
    done, codes = run(tmp_path, 2, case, case / "reference")
    assert codes == ["0", "0"]
    assert done.stdout.startswith("Equal: 27 tensors, ")
    assert done.stdout.count("\n") == 1


def test_a_difference_is_said_once_and_is_the_exit_code_of_all(case: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[UP].mul_(1.5)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
        tensors["lm_head.weight"].zero_()

    other = planted(case / "reference", tmp_path / "other", change)
    done, codes = run(tmp_path, 3, other, case, "--report", tmp_path / "report.html")
    assert codes == ["1", "1", "1"]
    first, *_, last = done.stdout.splitlines()
    assert first == "Different: 24 of 27 tensors equal, 3 differ"
    assert last == f"Report: {tmp_path / 'report.html'}"
    for text in (first, "hint: scaled by 1.5", "hint: all zeros", "(--cast-reference compares so)"):
        assert done.stdout.count(text) == 1
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "scaled by 1" in report
    assert report.endswith("</html>\n")
    assert "ckpt: " not in done.stderr


def test_no_verdict_is_said_once(case: Path, tmp_path: Path) -> None:
    done, codes = run(tmp_path, 2, tmp_path / "nowhere", case)
    assert codes == ["2", "2"]
    assert done.stdout == ""
    assert done.stderr.count("nowhere: no such file or folder") == 1
