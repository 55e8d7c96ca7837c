"""Rank files that several processes read, some each: all have what one alone would have read."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common.errors import CkptError, UnsafeContentError
from ckpt_tool.common.parallel import Team
from ckpt_tool.readers import Checkpoint, open_checkpoint, open_folders, read_together
from ckpt_tool.readers.fsdp import gathered
from ckpt_tool.readers.fsdp.shares import split
from tests.real.fsdp_cases import CASES
from tests.support.teams import run_as_team


def open_as_team(count: int, *paths: Path) -> list[Checkpoint]:
    def open_shared(team: Team) -> Checkpoint:
        with read_together(paths, team):
            return team.world.each(lambda: open_folders(paths, progress=team.progress))

    return [found for found, _ in run_as_team(count, open_shared)]


def assert_alike(found: Checkpoint, alone: Checkpoint) -> None:
    assert replace(found, sums={}) == replace(alone, sums={})
    assert list(found.entries) == list(alone.entries)
    assert found.problems == alone.problems
    assert {path: list(sums) for path, sums in found.sums.items()} == {
        path: list(sums) for path, sums in alone.sums.items()
    }
    if not alone.problems:
        assert all(found[name].chunks == alone[name].chunks for name in alone)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the archives that were opened since."""
    paths: list[str] = []
    real = gathered.TorchArchive

    def watched(path: Path) -> object:
        paths.append(path.name)
        return real(path)

    monkeypatch.setattr(gathered, "TorchArchive", watched)
    return paths


def test_files_are_split_into_runs_of_as_many_bytes() -> None:
    def sizes(count: int, *given: int) -> list[list[int]]:
        files = [(str(number), size, 0) for number, size in enumerate(given)]
        return [[size for _, size, _ in run] for run in split(files, count)]

    assert sizes(2, 5, 5, 5, 5) == [[5, 5], [5, 5]]
    assert sizes(2, 9, 1, 1, 1) == [[9], [1, 1, 1]]
    assert sizes(3, 4, 4) == [[4], [], [4]]
    assert sizes(1, 3, 0, 3) == [[3, 0, 3]]
    assert sizes(2, 0, 0) == [[0, 0], []]
    assert sizes(2) == [[], []]


@given(st.lists(st.integers(0, 1 << 50), max_size=40), st.integers(1, 9))
def test_every_file_is_in_one_run_in_its_order(sizes: list[int], count: int) -> None:
    files = [(str(number), size, 0) for number, size in enumerate(sizes)]
    runs = split(files, count)
    assert len(runs) == count
    assert [file for run in runs for file in run] == files


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_team_reads_what_one_reads(checkpoints, case) -> None:
    folder = checkpoints[case.name] / "actor"
    alone = open_checkpoint(folder)
    for count in {2, 3, case.world_size + 1}:
        for found in open_as_team(count, folder):
            assert_alike(found, alone)


def test_each_file_is_read_by_one_process(checkpoints, opened: list[str]) -> None:
    folder = checkpoints["fsdp2_tp_w4"] / "actor"
    open_as_team(3, folder)
    assert sorted(opened) == sorted(path.name for path in folder.glob("*.pt"))
    assert len(opened) == 4


def test_what_a_process_tells_the_others_can_be_sent(checkpoints) -> None:
    alone = open_checkpoint(checkpoints["fsdp2_tp_w4"] / "actor")
    assert_alike(pickle.loads(pickle.dumps(alone)), alone)


def test_a_step_of_a_run_is_found_as_it_is_by_one(checkpoints, tmp_path, opened: list[str]) -> None:
    step = tmp_path / "global_step_7"
    step.mkdir()
    (step / "actor").symlink_to(checkpoints["fsdp2_w2"] / "actor")
    for root in (tmp_path, step):
        alone = open_checkpoint(root)
        opened.clear()
        assert_alike(open_as_team(2, root)[1], alone)
        assert len(opened) == 2
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    opened.clear()
    open_as_team(2, tmp_path)
    assert len(opened) == 2


def test_folders_of_nodes_are_read_together(checkpoints, tmp_path, opened: list[str]) -> None:
    actor = checkpoints["fsdp2_tp_w4"] / "actor"
    nodes = [tmp_path / name for name in ("one", "two")]
    for node, ranks in zip(nodes, ((0, 1), (2, 3)), strict=True):
        node.mkdir()
        for rank in ranks:
            shutil.copy2(actor / f"model_world_size_4_rank_{rank}.pt", node)
    alone = open_folders(nodes)
    opened.clear()
    for found in open_as_team(2, *nodes):
        assert_alike(found, alone)
    assert len(opened) == 4


def swap(folder: Path) -> None:
    one, other = (folder / f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1))
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def lose(folder: Path) -> None:
    (folder / "model_world_size_2_rank_0.pt").unlink()


def cut(folder: Path) -> None:
    os.truncate(folder / "model_world_size_2_rank_1.pt", 1000)


def change(folder: Path) -> None:
    path = folder / "model_world_size_2_rank_1.pt"
    torch.save({"a": torch.zeros(3), 7: None, "b": "text"}, path)


@pytest.mark.parametrize("damage", [swap, lose, cut, change])
def test_what_is_wrong_is_said_as_by_one(
    checkpoints, tmp_path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", folder)
    damage(folder)
    alone = open_checkpoint(folder)
    assert alone.problems
    for found in open_as_team(2, folder):
        assert_alike(found, alone)


@pytest.mark.parametrize("odd", ["class", "depth"])
def test_what_lies_in_a_dtensor_beside_is_not_sent(checkpoints, tmp_path, odd: str) -> None:
    """An attribute that cannot be pickled, or whose pickle is deep: one process reads them, too."""
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", folder)
    for path in sorted(folder.glob("*.pt")):
        state = torch.load(path, weights_only=False)
        for value in state.values():
            value.odd = "MARKER"
        torch.save(state, path)
        _put_in_place_of_marker(path, odd)
    alone = open_checkpoint(folder)
    assert alone.problems == ()
    for found in open_as_team(2, folder):
        assert_alike(found, alone)


def _put_in_place_of_marker(path: Path, odd: str) -> None:
    """Write the pickle anew, with a class or with lists in lists where the marker was put."""
    put = b"ccollections\nOrderedDict\n" if odd == "class" else b"]" * 30_000 + b"a" * 29_999
    marker = b"X\x06\x00\x00\x00MARKER"
    with zipfile.ZipFile(path) as old:
        records = {info: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for info, content in records.items():
            if info.filename.endswith("data.pkl"):
                assert marker in content
                content = content.replace(marker, put, 1)  # noqa: PLW2901
            new.writestr(info, content)


class _Code:
    def __reduce__(self) -> tuple[Callable[[str], int], Sequence[str]]:
        return os.system, ("true",)


def test_a_pickle_that_asks_for_code_is_refused_by_all(checkpoints, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", folder)
    torch.save({"a": _Code()}, folder / "model_world_size_2_rank_1.pt")

    def try_open(team: Team) -> str:
        with read_together([folder], team), pytest.raises(UnsafeContentError) as caught:
            open_checkpoint(folder)
        return str(caught.value)

    said = [each for each, _ in run_as_team(2, try_open)]
    assert "system" in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize("spoil", [lambda _: None, lambda path: (path / "x.txt").write_text("")])
def test_what_is_no_ranks_says_what_it_says_to_one(tmp_path, spoil) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    spoil(folder)
    for path in (folder, tmp_path / "absent"):
        with pytest.raises(CkptError) as alone:
            open_checkpoint(path)

        def try_open(team: Team, path: Path = path) -> str:
            with read_together([path], team), pytest.raises(CkptError) as caught:
                open_checkpoint(path)
            return str(caught.value)

        assert {said for said, _ in run_as_team(2, try_open)} == {str(alone.value)}


def test_a_file_that_was_written_again_is_read_again(
    checkpoints, tmp_path, opened: list[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoints["fsdp2_w2"] / "actor", folder)
    path = folder / "model_world_size_2_rank_1.pt"

    def open_late(team: Team) -> Checkpoint:
        with read_together([folder], team):
            team.world.first(lambda: os.utime(path, ns=(1, 1)))
            return open_checkpoint(folder)

    found = [each for each, _ in run_as_team(2, open_late)]
    assert len(opened) == 2 + 2 * 2
    assert all(each.files[1].mtime_ns == 1 for each in found)


def test_one_process_alone_reads_when_it_opens(checkpoints, opened: list[str]) -> None:
    folder = checkpoints["fsdp2_w2"] / "actor"

    def enter(team: Team) -> int:
        with read_together([folder], team):
            return len(opened)

    assert run_as_team(1, enter)[0][0] == 0
