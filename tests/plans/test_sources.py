"""Sources: what of them makes a plan another one, and what happens when they change meanwhile."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.huggingface import HubPlan
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.plans.write import write
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.lowrank import update_matrix
from ckpt_tool.writers.safetensors import plan_files
from tests.support.merging import TINY, values, write_rank

RANK = "model_world_size_1_rank_0.pt"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(4)}
    return write_rank(tmp_path / "in", state, TINY)


def plan_of(source: Path) -> HubPlan:
    return make_plan(source, "fsdp", MergeOptions(max_shard_size="20KB"))


class Once(NoProgress):
    """Does something when the first bytes are written."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work: Callable[[], object] | None = work

    def advance(self, amount: int) -> None:
        if self.work is not None:
            work, self.work = self.work, None
            work()


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    """Another file of the same size in its place."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def replace_by_copy(path: Path) -> None:
    """Another file of the same size and time, as ``cp --preserve`` of another step leaves it."""
    found = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(bytes(found.st_size))
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.rename(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "touched": (os.utime, "was written again after it was opened"),
    "written again": (rewrite, "was written again after it was opened"),
    "longer": (append, r"had [\d,]+ bytes when it was opened, and has [\d,]+ now"),
    "replaced": (replace_by_copy, "was replaced by another file after it was opened"),
    "gone": (Path.unlink, r"had [\d,]+ bytes when it was opened, and has 0 now"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_source_that_changes_while_it_is_read_is_refused(
    source: Path, tmp_path: Path, change, said: str
) -> None:
    plan = plan_of(source)
    team = Team(ALONE, 2, Once(lambda: change(source / RANK)))
    with pytest.raises(CheckpointError, match="changed while it was read") as error:
        write(plan, tmp_path / "out", WriteOptions(check_load=False), team)
    (problem,) = error.value.problems
    assert (problem.kind, problem.where) == ("changed", str(source / RANK))
    assert re.fullmatch(said, problem.message)
    assert "write.resume" not in error.value.hint  # nobody knows what was read
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("change", [os.utime, append, replace_by_copy])
def test_so_is_a_file_that_is_copied(source: Path, tmp_path: Path, change) -> None:
    """It is read when all else is written: what was looked at before may be another one."""
    tokenizer = source / "huggingface" / "tokenizer.json"
    tokenizer.write_text("{}")
    team = Team(ALONE, 2, Once(lambda: change(tokenizer)))
    with pytest.raises(CheckpointError, match="changed while it was read") as error:
        write(plan_of(source), tmp_path / "out", WriteOptions(check_load=False), team)
    assert [problem.where for problem in error.value.problems] == [str(tokenizer)]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_so_is_the_model_that_fills_what_is_missing(source: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    config = {**TINY, "num_hidden_layers": 2}
    (base / "config.json").write_text(json.dumps(config))
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(5)}
    save_file(state, base / "model.safetensors")
    plan = make_plan(source, "fsdp", MergeOptions(fill_from=base, config=base))
    team = Team(ALONE, 2, Once(lambda: replace_by_copy(base / "model.safetensors")))
    with pytest.raises(CheckpointError, match="changed while it was read") as error:
        write(plan, tmp_path / "out", WriteOptions(check_load=False), team)
    assert [problem.where for problem in error.value.problems] == [str(base / "model.safetensors")]


def test_a_change_comes_before_the_differences_that_it_makes(source: Path, tmp_path: Path) -> None:
    """What reads back otherwise than planned is not the disk's fault then."""
    plan = plan_of(source)

    def overwrite() -> None:
        with open(source / RANK, "r+b") as file:
            file.write(bytes(plan.checkpoint.files[0].bytes))

    team = Team(ALONE, 2, Once(overwrite))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        write(plan, tmp_path / "out", WriteOptions(check_load=False, verify=True), team)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_changes_between_planning_and_writing_is_refused_too(
    source: Path, tmp_path: Path
) -> None:
    plan = plan_of(source)
    os.utime(source / RANK)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        write(plan, tmp_path / "out", WriteOptions(check_load=False), Team(ALONE, 2, NoProgress()))


def test_what_is_there_already_stays_where_a_source_changed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("still here")
    team = Team(ALONE, 2, Once(lambda: os.utime(source / RANK)))
    with pytest.raises(CheckpointError):
        write(plan_of(source), out, WriteOptions(check_load=False, overwrite=True), team)
    assert [path.name for path in out.iterdir()] == ["old"]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def with_tensor(plan: HubPlan, tensor: LazyTensor) -> HubPlan:
    return replace(plan, files=plan_files({"a.weight": tensor}, 1 << 30))


def in_two_chunks(path: str, second: int, columns: int = 64) -> LazyTensor:
    """Rows 0 to 8 from byte 64 of a file, the next 8 from byte ``second``."""
    chunks = (
        Chunk(Box((0, 0), (8, 64)), Region(path, 64, (64, 1))),
        Chunk(Box((8, 0), (8, 64)), Region(path, second, (columns, 1))),
    )
    return LazyTensor((16, 64), FLOAT32, FLOAT32, chunks)


def test_every_chunk_counts(source: Path) -> None:
    """Planned files that differ only in where the last chunk comes from."""
    plan, path = plan_of(source), str(source / RANK)
    marks = {
        with_tensor(plan, in_two_chunks(path, second, columns)).fingerprint
        for second, columns in ((4096, 64), (4160, 64), (4096, 128))
    }
    assert len(marks) == 3
    assert with_tensor(plan, in_two_chunks(path, 4096)).fingerprint in marks


def test_every_chunk_of_what_is_computed_counts(source: Path) -> None:
    plan, path = plan_of(source), str(source / RANK)
    left = in_two_chunks(path, 4096).narrow(1, 0, 2)

    def mark(second: int, scale: float) -> str:
        right = in_two_chunks(path, second).narrow(0, 7, 2)
        fused = update_matrix(in_two_chunks(path, 4096), left, right, scale)
        return with_tensor(plan, fused).fingerprint

    assert mark(4096, 2.0) == mark(4096, 2.0)
    assert len({mark(4096, 2.0), mark(4160, 2.0), mark(4096, 3.0)}) == 3


def test_where_the_sources_lie_does_not_count(source: Path, tmp_path: Path) -> None:
    before = plan_of(source)
    after = plan_of(source.rename(tmp_path / "moved"))
    assert after.fingerprint == before.fingerprint
    assert after.timed_fingerprint == before.timed_fingerprint


def test_times_count_for_what_goes_on_from_an_earlier_run_only(source: Path) -> None:
    before = plan_of(source)
    os.utime(source / RANK, ns=(1, 1))
    after = plan_of(source)
    assert after.fingerprint == before.fingerprint
    assert after.timed_fingerprint != before.timed_fingerprint
