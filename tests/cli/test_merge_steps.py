"""`ckpt merge RUN OUT --steps`: several steps of a run, and those that come while one watches."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.common.test_parallel import PROJECT
from tests.support.merging import load_folder, values, write_rank

BARE = ("--config", "none")


def state(step: int) -> dict[str, torch.Tensor]:
    return {"a.weight": values(64, 16, start=step)}


def write_step(step: int, role: str = "actor") -> Path:
    return write_rank(Path(f"run/global_step_{step}/{role}"), state(step))


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (9, 10, 100):
        write_step(step)


def merge(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["merge", *map(str, words)])


def rows(done: Result) -> list[list[str]]:
    """The table: step, role, OUT, and what it is."""
    body = done.stdout.splitlines()[3:]
    return [line.split()[:4] for line in body if line.strip()]


def list_out() -> list[str]:
    return sorted(path.name for path in Path("hf").iterdir())


def require_merged(out: str, step: int) -> None:
    (tensor,) = load_folder(Path(out)).values()
    assert torch.equal(tensor, state(step)["a.weight"])


@pytest.mark.parametrize("word", [[], ["fsdp"]])
def test_every_step_has_a_folder_and_a_row(word: list[str]) -> None:
    done = merge(*word, "run", "hf/{step}", "--steps", "all", *BARE)
    assert done.exit_code == 0, done.output
    assert rows(done) == [[str(n), "actor", f"hf/{n}", "written"] for n in (9, 10, 100)]
    assert done.stderr.splitlines() == [
        f"ckpt: step {n} (actor): written: hf/{n}" for n in (9, 10, 100)
    ]
    for step in (9, 10, 100):
        require_merged(f"hf/{step}", step)
    assert "hf upload" not in done.stdout


@pytest.mark.parametrize(
    ("asked", "steps"), [("10,9", [9, 10]), ("100", [100]), ("latest", [100]), ("9, 100", [9, 100])]
)
def test_some_steps(asked: str, steps: list[int]) -> None:
    done = merge("run", "hf/{step}", "--steps", asked, *BARE)
    assert [int(row[0]) for row in rows(done)] == steps
    assert list_out() == sorted(map(str, steps))


def test_what_is_complete_is_not_written_again() -> None:
    merge("run", "hf/{step}", "--steps", "9,10", *BARE)
    before = Path("hf/9").stat().st_ino
    write_step(10).joinpath("model_world_size_1_rank_0.pt").write_bytes(b"")
    write_rank(Path("run/global_step_10/actor"), state(11))
    done = merge("run", "hf/{step}", "--steps", "all", *BARE)
    assert done.exit_code == 2
    assert [row[3] for row in rows(done)] == ["was", "failed", "written"]
    assert "error: step 10 (actor): " in done.stderr
    assert "replace it with --overwrite" in done.stderr
    assert Path("hf/9").stat().st_ino == before
    require_merged("hf/10", 10)
    done = merge("run", "hf/{step}", "--steps", "all", "--overwrite", *BARE)
    assert [row[3] for row in rows(done)] == ["was", "written", "was"]
    assert Path("hf/9").stat().st_ino == before
    require_merged("hf/10", 11)


def test_a_step_that_fails_does_not_stop_the_others() -> None:
    Path("run/global_step_10/actor/model_world_size_1_rank_0.pt").write_bytes(b"PK\3\4")
    done = merge("run", "hf/{step}", "--steps", "all", *BARE)
    assert done.exit_code == 2
    assert [row[3] for row in rows(done)] == ["written", "failed", "written"]
    assert "ckpt: error: step 10 (actor): " in done.stderr
    assert list_out() == ["100", "9"]


def test_a_difference_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_tool.plans.stage.read_back", lambda *_: ["a.weight"])
    done = merge("run", "hf/{step}", "--steps", "9", "--verify", *BARE)
    assert done.exit_code == 1
    assert rows(done)[0][3] == "differs,"
    assert not Path("hf/9").exists()


def test_the_result_as_json() -> None:
    Path("run/global_step_10/actor/model_world_size_1_rank_0.pt").write_bytes(b"")
    done = merge("run", "hf/{step}", "--steps", "all", "--json", *BARE)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert [row["happened"] for row in found] == ["written", "failed", "written"]
    assert [row["result"] is None for row in found] == [False, True, False]
    assert found[0]["result"]["output"] == str(Path("hf/9").absolute())
    assert found[0] | {"result": 0, "seconds": 0} == {
        "step": 9,
        "role": "actor",
        "path": "run/global_step_9",
        "output": "hf/9",
        "happened": "written",
        "error": None,
        "seconds": 0,
        "result": 0,
    }
    assert "global_step_10" in found[1]["error"]
    assert done.exit_code == 2


@pytest.mark.parametrize("words", [["--quiet", "merge"], ["merge", "--json"]])
def test_who_wants_no_signs_gets_none(words: list[str]) -> None:
    Path("run/global_step_10/actor/model_world_size_1_rank_0.pt").write_bytes(b"")
    typed = [*words, "run", "hf/{step}", "--steps", "all", *BARE]
    done = CliRunner(env={"COLUMNS": "100"}).invoke(app, typed)
    assert done.exit_code == 2
    assert done.stderr.startswith("ckpt: error: step 10 (actor): ")
    assert done.stderr.count("ckpt: ") == 1
    assert "hf/100" in done.stdout


def test_two_roles_need_a_place_for_them() -> None:
    for step in (9, 10):
        write_step(step, "critic")
    done = merge("run", "hf/{step}", "--steps", "all", *BARE)
    assert done.exit_code == 2
    first, hint = done.stderr.splitlines()
    assert first.endswith(
        "hf/9: run/global_step_9/actor and run/global_step_9/critic would both be written there"
    )
    assert hint == "  Write {role} where it differs: 'hf/{step}-{role}'."
    assert not Path("hf").exists()
    done = merge("run", "hf/{step}-{role}", "--steps", "all", *BARE)
    assert done.exit_code == 0, done.output
    names = ["10-actor", "10-critic", "100-actor", "9-actor", "9-critic"]
    assert list_out() == names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hf", "--steps", "all"], "Write {step} where it differs: 'hf/{step}'."),
        (["hf/{step}", "--steps", "9,7"], "run: no step 7 is there: there are 9, 10 and 100"),
        (["hf/{step}", "--steps", "nine"], "--steps nine: are no steps"),
        (["hf/{step}", "--steps", ""], "are no steps"),
        (["hf/{step}", "--watch"], "--watch: needs --steps"),
        (["hf/{step}", "--steps", "all", "--watch-every", "1"], "--watch-every is about --watch"),
        (["hf", "--steps", "all", "--watch"], "hf: every step that comes would be written there"),
        (["hf/{step}", "--steps", "all", "--step", "9"], "--step: is about one checkpoint"),
        (["hf/{step}", "--steps", "all", "--upload", "m"], "--upload: is about one checkpoint"),
        (["hf/{step}", "--steps", "all", "--dry-run"], "--dry-run: is about one checkpoint"),
        (["run", "hf/{step}", "--steps", "all"], "--steps: of one run's folder"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str) -> None:
    done = merge("run", *words, *BARE)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert not Path("hf").exists()


def test_a_checkpoint_alone_has_no_steps() -> None:
    write_rank(Path("alone"), state(1))
    done = merge("alone", "hf/{step}", "--steps", "all", *BARE)
    assert done.exit_code == 2
    assert "alone: no step of a run that can be merged is below it" in done.stderr


# --- as they come


#: The program, where the tests run in the background of a shell, which has Ctrl-C ignored, too.
HEARS = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_module('ckpt_tool', run_name='__main__')"
)


def start(*words: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", HEARS, "merge", *words, *BARE]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "100"}
    return subprocess.Popen(program, env=environment, **told)


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if found():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(process.communicate(timeout=5))


def test_a_slow_writer_is_waited_for_and_ctrl_c_shows_the_table() -> None:
    file = io.BytesIO()
    torch.save(state(200), file)
    whole = file.getvalue()
    process = start("run", "hf/{step}", "--steps", "all", "--watch", "--watch-every", "0.1")
    wait_for(Path("hf/100").exists, process)
    step = Path("run/global_step_200/actor")
    step.mkdir(parents=True)
    with (step / "model_world_size_1_rank_0.pt").open("wb") as out:
        for at in range(0, len(whole), len(whole) // 7):
            out.write(whole[at : at + len(whole) // 7])
            out.flush()
            time.sleep(0.35)  # several looks see the same
            assert at + len(whole) // 7 >= len(whole) or not Path("hf/200").exists()
    wait_for(Path("hf/200").exists, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    require_merged("hf/200", 200)
    table = [line.split()[0] for line in stdout.splitlines()[3:] if line.strip()]
    assert table == ["9", "10", "100", "200"]
    assert "failed" not in stdout
    assert stderr.count("waiting for steps in run: a look every 0.1 s, until Ctrl-C") == 1


def test_it_ends_when_all_that_were_named_are_there() -> None:
    process = start("run", "hf/{step}", "--steps", "10,11", "--watch", "--watch-every", "0.1")
    wait_for(Path("hf/10").exists, process)
    write_step(11)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    require_merged("hf/11", 11)
    assert list_out() == ["10", "11"]
