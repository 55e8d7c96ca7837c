"""`--step`: one checkpoint of a run's folder, by its number, or the last one."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.support.merging import TINY, load_folder, values, write_rank

TRACKER = "latest_checkpointed_iteration.txt"


def write_step(step: int, role: str = "actor") -> Path:
    return write_rank(Path(f"run/global_step_{step}/{role}"), {"a.weight": values(4, start=step)})


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of an actor, and no file that says which is the last; named from above it."""
    monkeypatch.chdir(tmp_path)
    for step in (9, 10, 100):
        write_step(step)


def ckpt(*words: object, monkeypatch: pytest.MonkeyPatch | None = None) -> Result:
    typed = [*map(str, words)]
    if monkeypatch is not None:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/ckpt", *typed])
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, typed)


def merge(*words: object) -> dict[str, object]:
    done = ckpt("merge", *words, "--config", "none", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(("asked", "step"), [("9", 9), ("100", 100), ("010", 10), ("latest", 100)])
def test_merge_takes_that_step(asked: str, step: int) -> None:
    found = merge("run", "out", "--step", asked)
    assert (found["step"], found["role"]) == (step, "actor")
    assert found["source"] == f"run/global_step_{step}/actor"
    (tensor,) = load_folder(Path("out")).values()
    assert tensor.tolist() == values(4, start=step).tolist()


@pytest.mark.parametrize("word", [[], ["fsdp"]])
def test_the_tracker_file_says_what_the_latest_is(word: list[str]) -> None:
    Path("run", TRACKER).write_text("10")
    assert merge(*word, "run", "out", "--step", "latest")["step"] == 10
    assert merge(*word, "run", "same")["step"] == 10
    assert merge(*word, "run", "other", "--step=100")["step"] == 100


def test_a_tracker_file_of_the_run_counts_for_the_folder_above_it() -> None:
    Path("run", TRACKER).write_text("10")
    assert merge(".", "out", "--step", "latest")["step"] == 10


def test_a_tracker_file_that_names_what_is_not_there_is_not_passed_over() -> None:
    Path("run", TRACKER).write_text("200")
    done = ckpt("merge", "run", "out", "--step", "latest")
    assert done.exit_code == 2
    assert f"run: {TRACKER} names '200', which is not here" in done.stderr
    assert merge("run", "out", "--step", "100")["step"] == 100


def test_a_step_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    done = ckpt("merge", "run", "out", "--step", 7, "--json", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "ckpt: error: run: no step 7 is there: there are 9, 10 and 100",
        *(f"  - ckpt merge run/global_step_{n} out --json" for n in (9, 10, 100)),
        "  Name one that is there.",
    ]


@pytest.mark.parametrize("asked", ["last", "-1", "1.5", "", "1" * 30])
def test_what_is_no_step(asked: str) -> None:
    done = ckpt("merge", "run", "out", f"--step={asked}")
    assert done.exit_code == 2
    assert done.stderr.startswith("ckpt: error: --step ")
    assert "is no step" in done.stderr


def test_without_a_step_all_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = ckpt("merge", "run", "my out", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "ckpt: error: run: 3 checkpoints are below it",
        *(f"  - ckpt merge run/global_step_{n} 'my out'" for n in (9, 10, 100)),
        "  - ckpt merge run 'my out' --step latest",
        "  Name the one you mean.",
    ]
    last = done.stderr.splitlines()[-2].removeprefix("  - ckpt ").replace("'my out'", "out").split()
    assert ckpt(*last, "--config", "none").exit_code == 0


def test_a_model_is_no_choice_for_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    merge("run/global_step_9", "run/hf")
    done = ckpt("merge", "run", "out", monkeypatch=monkeypatch)
    assert done.stderr.splitlines() == [
        "ckpt: error: run: 4 checkpoints are below it, with 1 model among them",
        *(f"  - ckpt merge run/global_step_{n} out" for n in (9, 10, 100)),
        "  - ckpt merge run out --step latest",
        "  Name the one you mean.",
    ]
    assert "  - ckpt verify run/hf b" in ckpt("verify", "run", "b", monkeypatch=monkeypatch).stderr


def test_two_roles_have_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(100, "critic")
    done = ckpt("merge", "run", "out", "--step", "latest", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "ckpt: error: run: 2 checkpoints are of step 100: actor and critic",
        *(f"  - ckpt merge run/global_step_100/{role} out" for role in ("actor", "critic")),
        "  Name the one you mean.",
    ]
    assert merge("run", "out", "--step", "10")["role"] == "actor"
    refused = ckpt("merge", "run", "other", monkeypatch=monkeypatch)
    assert "--step latest" not in refused.stderr
    assert "  - ckpt merge run/global_step_100/critic other\n" in refused.stderr


def test_the_last_of_several_runs_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    write_rank(Path("second/global_step_7/actor"), {"a.weight": values(4)})
    done = ckpt("merge", ".", "out", "--step", "latest", monkeypatch=monkeypatch)
    assert done.exit_code == 2
    assert "error: .: several runs are below it\n" in done.stderr
    assert "  - ckpt merge run/global_step_100 out\n" in done.stderr
    assert "  - ckpt merge second/global_step_7 out\n" in done.stderr
    assert "--step latest" not in ckpt("merge", ".", "out", monkeypatch=monkeypatch).stderr
    assert merge(".", "out", "--step", "7")["source"] == "second/global_step_7/actor"


def test_verify_takes_the_step_of_the_checkpoint() -> None:
    merge("run", "hf", "--step", "10")
    for step, code in (("10", 0), ("latest", 1)):
        done = ckpt("verify", "run", "hf", "--step", step, "--config", "none")
        assert done.exit_code == code, done.stderr
    done = ckpt("verify", "run", "--step", "10")
    assert done.exit_code == 2
    assert "--step: nothing to compare with" in done.stderr


def test_inspect_takes_the_step() -> None:
    found = json.loads(ckpt("inspect", "run", "--step", "10", "--json").stdout)
    assert found["path"] == "run/global_step_10/actor"
    done = ckpt("inspect", "run", "--step", "latest")
    assert done.stdout.startswith("FSDP checkpoint  run/global_step_100/actor")


def test_a_config_of_the_run_may_be_linked_to_from_its_steps() -> None:
    Path("run/config.json").write_text(json.dumps(TINY))
    beside = Path("run/global_step_10/actor/huggingface")
    beside.mkdir()
    (beside / "config.json").symlink_to("../../../config.json")
    done = ckpt("merge", "run", "out", "--step", "10", "--no-check-load")
    assert done.exit_code == 0, done.stderr
    assert Path("out/config.json").is_file()


def test_a_model_of_the_same_step_is_not_what_is_merged() -> None:
    merge("run/global_step_10", "run/step_10_hf/step_10")
    assert merge("run", "out", "--step", "10")["source"] == "run/global_step_10/actor"
