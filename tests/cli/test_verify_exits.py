"""`ckpt verify`: exit codes, above all where there can be no verdict."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.cli.test_app import HEAVY
from tests.support.merging import TINY, values, write_rank
from tests.support.verifying import merged, planted

UP = "model.layers.0.mlp.up_proj.weight"


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["verify", *map(str, arguments)])


@pytest.fixture
def case(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["fsdp2_w2"]


# --- no verdict
def truncate(actor: Path) -> None:
    path = actor / "model_world_size_2_rank_1.pt"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_rank(actor: Path) -> None:
    (actor / "model_world_size_2_rank_1.pt").unlink()


def lose_all_ranks(actor: Path) -> None:
    for path in actor.glob("*.pt"):
        path.unlink()


def damage_the_config(actor: Path) -> None:
    (actor / "huggingface" / "config.json").write_text("{")


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model_world_size_2_rank_1.pt"),
        (lose_a_rank, "rank 1 of 2 missing"),
        (lose_all_ranks, "no checkpoint of a known format"),
        (damage_the_config, "config.json: not JSON"),
        (shutil.rmtree, "no such file or folder"),
    ],
)
def test_what_is_damaged_is_exit_2_on_either_side(
    case: Path, tmp_path: Path, damage: Callable[[Path], None], message: str, flags: list[str]
) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(case / "actor", actor)
    damage(actor)
    for sides in ((actor, case), (case, actor), (actor, actor)):
        result = run(*sides, *flags)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("ckpt: error: ")
        assert message in result.stderr
        assert str(actor) in result.stderr
        assert "Traceback" not in result.stderr


def test_a_damaged_model_folder_is_exit_2(case: Path, tmp_path: Path) -> None:
    folder = merged(case, tmp_path / "folder", max_shard_size="30KB")
    path = folder / "model-00002-of-00003.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    result = run(folder, case)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"[unreadable] {path}: " in result.stderr
    path.unlink()
    result = run(case, folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"[missing-file] {path}: in the index, but not there" in result.stderr


@pytest.mark.parametrize("name", ["model_world_size_1_rank_0.pt", "pytorch_model.bin"])
def test_a_hostile_pickle_is_exit_2_and_runs_nothing(case: Path, tmp_path: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)  # type: ignore[return-value]

    write_rank(tmp_path / "in", {"a.weight": values(4), "bomb": Bomb()}, TINY)
    (tmp_path / "in" / "model_world_size_1_rank_0.pt").rename(tmp_path / "in" / name)
    for sides in ((tmp_path / "in", case), (case, tmp_path / "in")):
        result = run(*sides)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "nothing was run" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_two_checkpoints_without_tensors_are_not_equal(tmp_path: Path) -> None:
    empty = write_rank(tmp_path / "empty", {}, TINY)
    result = run(empty, empty)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_checkpoint_without_tensors_is_said_to_have_none(tmp_path: Path) -> None:
    empty = write_rank(tmp_path / "empty", {}, TINY)
    assert "--ignore" not in run(empty, empty).stderr


@pytest.mark.parametrize(
    "flags",
    [["--ignore", "*"], ["--atol", "-1"], ["--rtol", "nan"], ["--top", "0"], ["--jobs", "-1"],
     ["--ignore"], ["--nonsense"]],
)  # fmt: skip
def test_requests_that_make_no_sense_are_exit_2(case: Path, flags: list[str]) -> None:
    result = run(case, case / "reference", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_no_torch_is_imported(case: Path, tmp_path: Path) -> None:
    """Not for numbers and hints either; the program itself tells what it imports."""
    different = planted(case / "reference", tmp_path / "different", lambda t: t[UP].mul_(1.5))
    command = [sys.executable, "-X", "importtime", "-m", "ckpt_tool", "verify", different, case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hint: scaled by 1.5" in done.stdout
    imported = {line.rpartition("|")[2].split(".")[0].strip() for line in done.stderr.splitlines()}
    assert "numpy" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_exit_code_does_not_depend_on_who_reads(
    case: Path, tmp_path: Path, flags: list[str]
) -> None:
    """``ckpt verify A B | head -1`` must not turn a difference into success, or the reverse."""
    names = {f"a.{n}.{'x' * 90}": values(2) for n in range(200)}
    for side, start in (("a", 1), ("b", 2)):
        write_rank(tmp_path / side, names | {"c": values(2, start=start)}, TINY)
        write_rank(tmp_path / f"{side}_other", {f"{side}{n}": t for n, t in names.items()}, TINY)
    for one, other, wrong in (("a_other", "b_other", 0), ("a", "a", 1)):
        command = [sys.executable, "-m", "ckpt_tool", "verify", tmp_path / one, tmp_path / other]
        with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait() != wrong
