"""Which steps of a run are finished: nothing half-written is, whatever the order of writing."""

import io
import os
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import CkptError
from ckpt_tool.operations import watching
from ckpt_tool.operations.watching import Watch
from tests.support.merging import values, write_rank

TRACKER = "latest_checkpointed_iteration.txt"
STATE = {"a.weight": values(64, 64)}


def look(watch: Watch) -> list[int | None]:
    return [each.step for each in watch.look()]


def hand_out(watch: Watch, *, has_failed: bool = False) -> list[int | None]:
    found = watch.look()
    for each in found:
        watch.note(each, has_failed=has_failed)
    return [each.step for each in found]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path, None, only_last=False)


def encode(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_a_step_is_finished_when_it_was_the_same_twice(watch: Watch, tmp_path: Path) -> None:
    write_rank(tmp_path / "global_step_1", STATE)
    assert look(watch) == []
    assert hand_out(watch) == [1]
    assert hand_out(watch) == []
    write_rank(tmp_path / "global_step_2", STATE)
    assert [look(watch), hand_out(watch), look(watch)] == [[], [2], []]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_half_a_file_is_not_finished_however_long_it_stays_so(
    watch: Watch, tmp_path: Path, share: float
) -> None:
    path = write_rank(tmp_path / "global_step_1", STATE) / "model_world_size_1_rank_0.pt"
    whole = encode(STATE)
    path.write_bytes(whole[: int(len(whole) * share)])
    assert [look(watch) for _ in range(4)] == [[]] * 4
    path.write_bytes(whole)
    assert [look(watch), look(watch)] == [[], [1]]


def test_some_of_the_ranks_are_no_checkpoint(watch: Watch, tmp_path: Path) -> None:
    write_rank(tmp_path / "global_step_1" / "actor", STATE, None, 0, 2)
    assert [look(watch) for _ in range(3)] == [[]] * 3


def test_a_file_that_grows_beside_the_ranks_is_waited_for(watch: Watch, tmp_path: Path) -> None:
    """As the optimizer's, which is written after them."""
    step = write_rank(tmp_path / "global_step_1", STATE)
    for size in range(1, 4):
        (step / "optim_world_size_1_rank_0.pt").write_bytes(bytes(size))
        assert look(watch) == []
    assert look(watch) == [1]


def test_what_a_tracker_file_names_is_finished_at_once(watch: Watch, tmp_path: Path) -> None:
    for step in (1, 2):
        write_rank(tmp_path / f"global_step_{step}" / "actor", STATE)
    (tmp_path / TRACKER).write_text("2")
    assert hand_out(watch) == [2]
    assert hand_out(watch) == [1]  # by waiting


def test_a_tracker_file_of_an_earlier_run_names_nothing(watch: Watch, tmp_path: Path) -> None:
    """Step 2 is written anew, from an earlier one on: not all of its files are of one run."""
    tracker = tmp_path / TRACKER
    tracker.write_text("2")
    step = write_rank(tmp_path / "global_step_2" / "actor", STATE)
    stat = tracker.stat()
    os.utime(step / "model_world_size_1_rank_0.pt", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert [look(watch), look(watch)] == [[], [2]]


def test_one_that_failed_is_tried_again_when_it_is_another(watch: Watch, tmp_path: Path) -> None:
    step = write_rank(tmp_path / "global_step_1", STATE)
    look(watch)
    assert hand_out(watch, has_failed=True) == [1]
    assert [look(watch) for _ in range(3)] == [[]] * 3
    (step / "config.json").write_text("{}")
    assert [look(watch), hand_out(watch), look(watch)] == [[], [1], []]


def test_of_several_that_are_finished_the_last_is_enough(tmp_path: Path) -> None:
    watch = Watch(tmp_path, None, only_last=True)
    for step in (3, 20):
        write_rank(tmp_path / f"global_step_{step}", STATE)
    look(watch)
    assert hand_out(watch) == [20]
    assert [look(watch) for _ in range(3)] == [[]] * 3
    write_rank(tmp_path / "global_step_21", STATE)
    assert [look(watch), hand_out(watch)] == [[], [21]]


def test_it_is_over_when_all_that_were_named_are_done(tmp_path: Path) -> None:
    watch = Watch(tmp_path, frozenset({1, 3}), only_last=False)
    for step in (1, 2):
        write_rank(tmp_path / f"global_step_{step}", STATE)
    look(watch)
    assert (hand_out(watch), watch.is_over) == ([1], False)
    write_rank(tmp_path / "global_step_3", STATE)
    look(watch)
    assert (hand_out(watch, has_failed=True), watch.is_over) == ([3], False)
    (tmp_path / "global_step_3" / "more").touch()
    look(watch)
    assert (hand_out(watch), watch.is_over) == ([3], True)


def test_a_step_that_is_removed_while_one_looks_is_no_end(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainers keep the last few."""
    for step in (1, 2):
        write_rank(tmp_path / f"global_step_{step}", STATE)
    look(watch)

    def lose(root: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(root / "global_step_1"))

    with monkeypatch.context() as patch:
        patch.setattr(watching, "list_run", lose)
        assert look(watch) == []
    assert look(watch) == [1, 2]
    (tmp_path / "run").mkdir()
    gone = Watch(tmp_path / "run", None, only_last=False)
    (tmp_path / "run").rmdir()
    with pytest.raises(CkptError, match="no such file or folder"):
        gone.look()


def test_a_run_that_has_not_begun(watch: Watch, tmp_path: Path) -> None:
    assert look(watch) == []
    assert not watch.is_over
